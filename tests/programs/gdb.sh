# SPDX-License-Identifier: Apache-2.0
# needs: gdb gcc
# limit: 180
# program: gdb
# shows: values, a call stack and a disassembly equal those without the library
# may not mesh
# compare
# The debugger under the library, of a program under it.
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
delete
continue
G
gdb -q -batch -nx -x commands ./program >out 2>&1 </dev/null || { cat out >&2; exit 1; }
grep -E '^(\$|[0-9]+$)' out
gdb -q -batch -nx -ex 'info functions ^re' -ex 'ptype struct node' -ex 'disassemble main' ./program | cksum
