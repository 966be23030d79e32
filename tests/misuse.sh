#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every case of the misuse program under LIB, at each level of MESH_UFFD_CHECK that must find it: it must end by
# SIGABRT after one line on standard error that names the pointer and says what is wrong, and with MESH_UFFD_ABORT=0 go
# on after that line. MISUSE names the program, else it is looked for here and beside the script.
LIB=${LIB:-}
if [ -z "$LIB" ]; then
  echo "skipped: LIB does not name the library"
  exit 77
fi
case $LIB in
  */*) LIB=$(cd "$(dirname "$LIB")" && pwd)/$(basename "$LIB") ;;
esac
[ -f "$LIB" ] || { echo "FAIL: there is no $LIB"; exit 1; }

program=${MISUSE:-./misuse}
[ -x "$program" ] || program=$(dirname "$0")/misuse
[ -x "$program" ] || { echo "FAIL: there is no misuse program"; exit 1; }

directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
failed=0

fail() {
  echo "FAIL $name: $1"
  sed 's/^/    out: /' "$directory/out"
  sed 's/^/    err: /' "$directory/err"
  failed=1
}

# what NAME: the words that must say what is wrong.
what() {
  case $1 in
    free-stack | free-mmap) echo 'free(POINTER): not an allocation of this allocator' ;;
    realloc-mmap | realloc-interior* | realloc-freed-large) echo 'realloc(POINTER): not the start of an allocation, or freed before' ;;
    realloc-freed*) echo 'realloc(POINTER): freed before' ;;
    realloc-past*) echo 'realloc(POINTER): written past its end of ' ;;
    *past* | into*) echo 'free(POINTER): written past its end of ' ;;
    double-free-small*) echo 'free(POINTER): \(double free\|freed before\)' ;;
    *) echo 'free(POINTER): \(not the start of an allocation\|freed before\)' ;;
  esac
}

# run CHECK ABORT: the case $name with these options; checks what came of it.
run() {
  # The subshell becomes the program: what a shell has to say about the signal does not go to the program's output.
  (
    # shellcheck disable=SC3045 # where it is unknown, cores may be written
    ulimit -c 0 2>/dev/null
    LD_PRELOAD=$LIB MESH_UFFD_CHECK=$1 MESH_UFFD_ABORT=$2
    export LD_PRELOAD MESH_UFFD_CHECK MESH_UFFD_ABORT
    exec "$program" "$name"
  ) >"$directory/out" 2>"$directory/err"
  status=$?
  pointer=$(sed -n 's/^pointer: //p' "$directory/out")
  lines=$(grep -c '' "$directory/err")
  with="check $1, abort $2"
  words=$(what "$name" | sed "s/POINTER/$pointer/")
  if [ -z "$pointer" ]; then
    fail "$with: the program did not start: status $status"
  elif [ "$name" = none ]; then
    if [ "$status" -ne 3 ] || [ "$lines" -ne 0 ]; then fail "$with: nothing was wrong, but status is $status"; fi
  elif [ "$lines" -ne 1 ]; then
    fail "$with: $lines lines on standard error, must be one"
  elif [ "$2" = 1 ] && [ "$status" -eq 3 ]; then
    fail "$with: nobody noticed"
  elif [ "$2" = 1 ] && [ "$status" -ne 134 ]; then
    fail "$with: status is $status, must be 134 (SIGABRT)"
  elif [ "$2" = 0 ] && [ "$status" -ne 3 ]; then
    fail "$with: status is $status, it must go on"
  elif ! grep -q "^mesh-uffd: $words" "$directory/err"; then
    fail "$with: the line must say '$words'"
  else
    return 0
  fi
}

unset MESH_UFFD_TEST_EAGER MESH_UFFD_TEST_FAIL
"$program" >"$directory/cases"
while read -r name check; do
  before=$failed
  for level in 0 1 2; do
    [ $level -lt "$check" ] || { run $level 1 && run $level 0; }
  done
  [ $failed -ne "$before" ] || echo "ok $name: $(cat "$directory/err")"
done <"$directory/cases"
[ $failed -eq 0 ] && echo passed
exit $failed
