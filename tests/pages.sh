#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The heap with pages of 16 and 64 KiB: its unit tests, and programs with the library preloaded. The kernel's pages stay as
# they are, so nothing is meshed; what that needs is a pure function of bitmaps, which test_mesh_search looks at.
set -eu -o pipefail
: "${LIB:?}" "${abs_top_builddir:?}"
cd "$abs_top_builddir"
failed=0
said=$(mktemp)
trap 'rm -f "$said"' EXIT
unset LD_PRELOAD

# run NAME COMMAND...
run() {
  local name=$1 status=0
  shift
  timeout 120 "$@" >"$said" 2>&1 || status=$?
  [ "$status" != 77 ] || echo "skipped part: $name: $(tail -n 1 "$said")"
  [ "$status" != 0 ] || echo "ok $name"
  [ "$status" = 0 ] || [ "$status" = 77 ] || {
    tail -n 30 "$said"
    echo "FAIL $name, status $status"
    failed=1
  }
}

for size in 16384 65536; do
  export MESH_UFFD_TEST_PAGE_SIZE=$size
  [ "$(getconf PAGESIZE)" -lt "$size" ] || continue
  for test in arena arena_validate global_heap large mesh_files pack span_table thread_local_heap; do
    [ -x tests/unit/test_$test ] || { echo "skipped: tests/unit/test_$test is not built"; exit 77; }
    run "$test, pages of $size" tests/unit/test_$test
  done
  # The first sees that pages are of the size asked for.
  for test in api threads fork_raw; do
    [ ! -x tests/$test ] || run "$test, pages of $size" env LD_PRELOAD="$LIB" tests/$test
  done
done
[ $failed = 0 ] || exit 1
echo passed
