# SPDX-License-Identifier: Apache-2.0
# needs: gdb gcc
# limit: 180
# program: gdb
# shows: values, a call stack and a disassembly equal those without the library
# several threads
# compare
# The debugger under the library, of a program under it; with thousands of breakpoints, of which most go again.
# That program is not run to its end: gdb 13 may fail when a process of several threads ends, whatever its malloc.
set -eu
cat >program.c <<'C'
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct node { struct node *next; int n; char text[40]; };
static void reached(struct node *list) { printf("%d\n", list->n); fflush(stdout); }
int main(void) {
  struct node *list = NULL;
  for (int i = 0; i < 20000; i++) {
    struct node *o = malloc(sizeof *o);
    if (!o) return 1;
    o->next = list, o->n = i;
    snprintf(o->text, sizeof o->text, "node %d", i);
    if (i % 16) free(o); else list = o;
  }
  for (int k = 0; k < 3; k++) reached(list);
  return 0;
}
C
gcc -g -O0 program.c -o program
cat >commands <<'G'
set confirm off
break reached
run
print list->text
print list->next->next->n
set var $l = list
set var $c = 0
while $l
  set var $c = $c + $l->n
  set var $l = $l->next
end
print $c
set var $i = 0
while $i < 2500
  eval "tbreak reached if list->n == %d", $i + 100000
  set var $i = $i + 1
end
set var $i = 0
while $i < 2500
  if $i % 11
    eval "delete %d", $i + 2
  end
  set var $i = $i + 1
end
continue
backtrace
info breakpoints
kill
G
gdb -q -batch -nx -x commands ./program >out 2>&1 </dev/null || { tail -n 30 out >&2; exit 1; }
grep -E '^(\$|[0-9]+$|#[0-9])' out | sed 's,list=0x[0-9a-f]*,list,'
grep -v '^Temporary breakpoint' out | grep -c 'stop only if list->n == 10'
gdb -q -batch -nx -ex 'info functions ^re' -ex 'ptype struct node' -ex 'disassemble main' ./program | cksum
