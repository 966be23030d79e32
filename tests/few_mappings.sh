#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# vm.max_map_count is lowered, for the whole machine and for some seconds: programs under LIB go on as they are, with less
# meshing or none; memory that is refused is NULL with ENOMEM. For root; part of check-long only. The number is put back.
LIB=${LIB:-}
if [ -z "$LIB" ] || [ ! -f "$LIB" ]; then
  echo "skipped: LIB does not name the library"
  exit 77
fi
programs=${abs_top_builddir:-.}/tests
[ -x "$programs/hostile" ] && [ -x "$programs/sparse" ] || { echo "FAIL: there are no test programs"; exit 1; }
limit=/proc/sys/vm/max_map_count
before=$(cat $limit 2>/dev/null)
# Its own number, written again: tells whether it may be.
if ! echo "$before" 2>/dev/null >$limit; then
  echo "skipped: $limit cannot be written"
  exit 77
fi
directory=$(mktemp -d) || exit 1
trap 'echo "$before" >$limit; rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
unset LD_PRELOAD MALLOCSTATS
failed=0

# run NAME SECONDS COMMAND...: right and silent, but for what a program says itself.
run() {
  name=$1 seconds=$2
  shift 2
  status=0
  timeout -s KILL "$seconds" env MESH_UFFD_TEST_EAGER=1 LD_PRELOAD="$LIB" "$@" >"$directory/out" 2>&1 || status=$?
  meshes=$(sed -n 's/^meshes //p' "$directory/out")
  if [ $status != 0 ] || grep -q '^mesh-uffd:' "$directory/out"; then
    echo "FAIL $name: status $status"
    sed 's/^/    /' "$directory/out"
    failed=1
  else
    echo "ok $name${meshes:+: $meshes meshes}"
  fi
}

for n in 400 1000 4000 8500 9000 16000; do
  echo $n >$limit || exit 1
  run "worker-$n" 60 "$programs/hostile" worker 200
  run "forks-$n" 60 "$programs/hostile" forks
  run "exhaust-$n" 60 "$programs/hostile" limit data 134217728 exhaust 134217728
  run "sparse-$n" 60 "$programs/sparse" 1
  [ $n != 16000 ] || [ "${meshes:-0}" != 0 ] || { echo "FAIL sparse-$n: nothing is meshed"; failed=1; }
done
echo "$before" >$limit
[ $failed = 0 ] && echo passed
exit $failed
