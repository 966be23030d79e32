#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The library beside other allocators, and where it must keep still: programs that are to be left alone, secure execution,
# /etc/ld.so.preload, dlmopen, memory from before it was loaded, sanitizers, valgrind. Parts need root, for a mount
# namespace or a set-user-ID program, or a tool that is named when it is not there.
set -u
: "${LIB:?}" "${abs_top_builddir:?}" "${abs_top_srcdir:?}"
directory=$(mktemp -d) || exit 99
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$directory"
cp "$abs_top_builddir/tests/neighbour" "$directory/neighbour" && cp "$LIB" "$directory/library.so" || exit 99
# Valgrind does not know every compiler's debug information, and ends with an error.
strip --strip-debug "$directory/neighbour" "$directory/library.so"
program=$directory/neighbour
library=$directory/library.so
unset LD_PRELOAD MALLOCSTATS "${!MESH_UFFD_@}"
failed=0

# expect NAME ERR OUT COMMAND...: it succeeds, its last line is OUT, and standard error is ERR (a pattern, of one line).
expect() {
  local name=$1 err=$2 out=$3
  shift 3
  timeout -s KILL $((60 * ${MESH_UFFD_TEST_SLOW:-1})) "$@" >"$directory/out" 2>"$directory/err"
  local status=$?
  if [ $status = 0 ] && [ "$(tail -n 1 "$directory/out")" = "$out" ] && [[ "$(cat "$directory/err")" =~ ^($err)$ ]]; then
    echo "ok $name"
  else
    echo "FAIL $name: status $status, '$out' and '$err' expected"
    sed 's/^/    /' "$directory/out" "$directory/err"
    failed=1
  fi
}
skip() { echo "skipped part: $1: $2"; }

# ---- programs that are denied ----
expect "not denied" '' 'ours 1' env LD_PRELOAD="$library" "$program" plain
expect "denied by name" '' 'ours 0' env LD_PRELOAD="$library" MESH_UFFD_DENY=other:neighbour "$program" plain
expect "denied another" '' 'ours 1' env LD_PRELOAD="$library" MESH_UFFD_DENY=neighbours:neighbou:x "$program" plain
expect "denied, statistics" 'mesh-uffd: stands aside: this program is on the list of those to be left alone' 'ours 0' \
  env LD_PRELOAD="$library" MALLOCSTATS=1 MESH_UFFD_DENY=neighbour "$program" plain
expect "checked, not denied" '' 'ours 1' env LD_PRELOAD="$library" MESH_UFFD_CHECK=2 "$program" plain
ln -s neighbour "$directory/link"
expect "denied by its file's name" '' 'ours 0' env LD_PRELOAD="$library" MESH_UFFD_DENY=neighbour "$directory/link" plain
expect "denied by its link's name" '' 'ours 0' env LD_PRELOAD="$library" MESH_UFFD_DENY=link "$directory/link" plain

# ---- for the whole system: in a mount namespace with an /etc of its own ----
deny_file=$(grep -ao '/[^[:cntrl:]]*/mesh-uffd\.deny' "$LIB" | head -n 1)
# shellcheck disable=SC2016 # for the shell inside
inside='
  set -e
  directory=$1 deny=$2 words=$3
  shift 3
  cp -a /etc "$directory/etc"
  echo "$directory/library.so" >"$directory/etc/ld.so.preload"
  mount --bind "$directory/etc" /etc
  [ "$(dirname "$deny")" = /etc ] || { mkdir -p "$directory/conf"; mount --bind "$directory/conf" "$(dirname "$deny")"; }
  [ -z "$words" ] || printf "%b" "$words" >"$deny"
  exec "$@"'
if [ "$(id -u)" != 0 ] || ! unshare -m true 2>"$directory/err"; then
  skip "/etc/ld.so.preload" "no mount namespace: $(id -un) $(cat "$directory/err" 2>/dev/null)"
elif [ ! -d "$(dirname "$deny_file")" ]; then
  skip "/etc/ld.so.preload" "there is no $(dirname "$deny_file")"
else
  system() {
    local name=$1 err=$2 out=$3 words=$4
    shift 4
    rm -rf "$directory/etc" "$directory/conf"
    expect "$name" "$err" "$out" unshare -m --propagation private sh -c "$inside" sh "$directory" "$deny_file" "$words" "$@"
  }
  system "/etc/ld.so.preload" '' 'ours 1' '' "$program" plain
  system "/etc/ld.so.preload, denied" '' 'ours 0' '# those that\n# are not: neighbours\nbash  neighbour # why\nother\n' "$program" plain
  system "/etc/ld.so.preload, in a comment" '' 'ours 1' 'bash # neighbour\n' "$program" plain
  cp "$program" "$directory/suid" && chmod 4755 "$directory/suid"
  other='setpriv --reuid=65534 --regid=65534 --clear-groups'
  # What the user says is ignored there, what the system says is not.
  # shellcheck disable=SC2086 # words are wanted
  {
    system "secure execution" '' 'ours 1' '' env MALLOCSTATS=2 MESH_UFFD_DENY=suid $other "$directory/suid" secure
    grep -q '^secure 1$' "$directory/out" || { echo "FAIL secure execution: it was none"; failed=1; }
    system "secure execution, denied" '' 'ours 0' 'suid\n' $other "$directory/suid" secure
  }
fi

# ---- copies, and memory of others ----
expect "dlmopen beside a preloaded one" '' 'ours 1' env LD_PRELOAD="$library" "$program" dlmopen "$library"
expect "dlmopen alone" '' 'ours 0' "$program" dlmopen "$library"
expect "memory from before it was loaded" '' 'ours 0' "$program" late "$library"
expect "the same, eager" '' 'ours 0' env MESH_UFFD_TEST_EAGER=1 "$program" late "$library"

# ---- sanitizers: the program's malloc is theirs ----
cat >"$directory/bad.c" <<'END'
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
  char *p = reallocarray(malloc(10), 10, 5), *volatile q = p;
  memset(p, 1, 50);
  if (argc > 1 && argv[1][0] == 'o') q[50] = 1;
  free(p);
  if (argc > 1 && argv[1][0] == 'd') free(q);
  puts("ended");
  return 0;
}
END
aside='mesh-uffd: stands aside: this program is built with a sanitizer, which has a malloc of its own'
for kind in address thread memory; do
  if ! clang -fsanitize=$kind -w -g -O0 "$directory/bad.c" -o "$directory/$kind" 2>"$directory/err"; then
    skip "sanitizer $kind" "clang: $(tail -n 1 "$directory/err")"
  elif ! "$directory/$kind" >/dev/null 2>"$directory/err"; then
    skip "sanitizer $kind" "it does not run here: $(head -n 1 "$directory/err")"
  else
    expect "sanitizer $kind" "$aside" ended env LD_PRELOAD="$library" "$directory/$kind"
  fi
done
if [ -x "$directory/address" ]; then
  LD_PRELOAD=$library "$directory/address" overrun >"$directory/out" 2>&1
  if grep -q 'heap-buffer-overflow' "$directory/out"; then echo "ok the sanitizer finds what it is for"; else
    echo "FAIL the sanitizer does not find an overflow"
    failed=1
  fi
fi
# One that is a library wants to be the first; where it is told not to, it serves malloc all the same.
if gcc -fsanitize=address -w -g -O0 "$directory/bad.c" -o "$directory/shared" 2>"$directory/err" &&
  "$directory/shared" >/dev/null 2>"$directory/err"; then
  LD_PRELOAD=$library "$directory/shared" >"$directory/out" 2>&1
  if grep -q 'ASan runtime does not come first' "$directory/out" && grep -q "^$aside" "$directory/out"; then
    echo "ok a sanitizer that is a library says that it must be first"
  else
    echo "FAIL a sanitizer that is a library"
    sed 's/^/    /' "$directory/out"
    failed=1
  fi
  expect "the same, preloaded first" "$aside" ended env LD_PRELOAD="$(gcc -print-file-name=libasan.so) $library" "$directory/shared"
  expect "the same, told not to" "$aside" ended env ASAN_OPTIONS=verify_asan_link_order=0 LD_PRELOAD="$library" "$directory/shared"
else
  skip "a sanitizer that is a library" "$(tail -n 1 "$directory/err")"
fi

# ---- valgrind ----
if ! command -v valgrind >/dev/null; then
  skip valgrind "it is not there"
elif ! valgrind -q true 2>"$directory/err"; then
  skip valgrind "it does not run here: $(head -n 1 "$directory/err")"
else
  expect valgrind 'mesh-uffd: stands aside: valgrind serves malloc' 'ours 0' \
    env LD_PRELOAD="$library" valgrind -q --error-exitcode=9 "$program" plain
  # Tools that leave malloc alone measure ours.
  expect "valgrind without a malloc" 'mesh-uffd: nothing is meshed or given back under valgrind' 'ours 1' env LD_PRELOAD="$library" valgrind -q --tool=none "$program" plain
fi

[ $failed = 0 ] && echo passed
exit $failed
