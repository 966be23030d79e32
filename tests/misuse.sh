#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every case of the misuse program under LIB: it must end by SIGABRT after one line on standard error that starts
# with `mesh-uffd: ` and names the pointer. MISUSE names the program, else it is looked for here and beside the script.
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

for name in $("$program"); do
  # The subshell becomes the program: what a shell has to say about the signal does not go to the program's output.
  (
    # shellcheck disable=SC3045 # where it is unknown, cores may be written
    ulimit -c 0 2>/dev/null
    LD_PRELOAD=$LIB
    export LD_PRELOAD
    exec "$program" "$name"
  ) >"$directory/out" 2>"$directory/err"
  status=$?
  pointer=$(sed -n 's/^pointer: //p' "$directory/out")
  lines=$(grep -c '' "$directory/err")
  if [ -z "$pointer" ]; then
    fail "the program did not start: status $status"
  elif [ "$name" = none ]; then
    if [ "$status" -ne 3 ] || [ "$lines" -ne 0 ]; then
      fail "nothing was wrong, but status is $status"
    else
      echo "ok $name"
    fi
  elif [ "$status" -eq 3 ]; then
    fail "nobody noticed"
  elif [ "$status" -ne 134 ]; then
    fail "status is $status, must be 134 (SIGABRT)"
  elif [ "$lines" -ne 1 ]; then
    fail "$lines lines on standard error, must be one"
  elif ! grep -q '^mesh-uffd: ' "$directory/err"; then
    fail "the line does not start with mesh-uffd:"
  elif ! grep -q -E "(^|[^0-9a-fx])$pointer([^0-9a-f]|\$)" "$directory/err"; then
    fail "the line does not name $pointer"
  else
    echo "ok $name: $(cat "$directory/err")"
  fi
done
[ $failed -eq 0 ] && echo passed
exit $failed
