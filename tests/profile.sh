#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Heap profiles: estimates within their sampling error, what holds pages, threads, forks, the signal, strange stacks.
. "${abs_top_srcdir:?}/tests/begin.sh"
need python3
program=$abs_top_builddir/tests/profiled
[ ! -x "$abs_top_builddir/tests/.libs/profiled" ] || program=$abs_top_builddir/tests/.libs/profiled
export MESH_UFFD_TEST_SEED=${MESH_UFFD_TEST_SEED:-$RANDOM$RANDOM}
echo "seed: $MESH_UFFD_TEST_SEED"

# profiled INTERVAL WHAT [NAME=VALUE...]: its output is in the file `out`, its profile in `heap`.
profiled() {
  local interval=$1 what=$2 status=0
  shift 2
  timeout 60 env MESH_UFFD_PROFILE="$interval" MESH_UFFD_PROFILE_FILE="$directory/heap" "$@" LD_PRELOAD="$LIB" \
    "$program" "$what" "$directory" >"$directory/out" 2>"$directory/err" || status=$?
  [ $status = 0 ] || fail "$what: status $status: $(cat "$directory/err")"
  return $status
}
check() { python3 "$abs_top_srcdir/tests/profile_check.py" "$@" || failed=1; }

profiled 4096 sites && check 4096 "$directory/out" "$directory/heap"
# The first that a thread makes are large, here: it has no heap of its own yet.
profiled 4096 sites MESH_UFFD_TEST_SEED=27891 && check 4096 "$directory/out" "$directory/heap"
profiled 100000 threads && check 100000 "$directory/out" "$directory/heap"
profiled 65536 realloc && check 65536 "$directory/out" "$directory/heap"
profiled 512 handler && check 512 "$directory/out" "$directory/heap"
profiled 1024 held && check --held 1024 "$directory/out" "$directory"
profiled 1 many && check --exact "$directory/out" "$directory/heap"
if profiled 100 strange; then echo "ok stacks that end in memory which cannot be read"; fi
profiled 4096 sites MESH_UFFD_TEST_EAGER=1 MESH_UFFD_TEST_VALIDATE=1 && check 4096 "$directory/out" "$directory/heap"

# Symbols, by the program that reads such files.
if command -v go >/dev/null && go tool pprof -h >/dev/null 2>&1 | head -n 1; then
  profiled 4096 sites
  HOME=$directory timeout 60 go tool pprof -symbolize=local -sample_index=inuse_space -top "$directory/heap" >"$directory/top" 2>&1
  if grep -q ' huge$' "$directory/top"; then echo "ok go tool pprof"; else fail "go tool pprof: $(cat "$directory/top")"; fi
else
  skip "there is no go tool pprof; profile_check.py has decoded the format by itself"
fi

# A child goes on with what it has; its file is its own, or it writes none.
profiled 512 fork MESH_UFFD_PROFILE_FILE="$directory/of.%p"
child=$(sed -n 's/^child //p' "$directory/out")
if [ "$(find "$directory" -name 'of.*' | wc -l)" = 2 ] && [ -r "$directory/of.$child" ]; then
  check 512 "$directory/out" "$directory/of.$child"
  { cat "$directory/out"; echo "truth medium 200 2000 2000"; } >"$directory/out2"
  check 512 "$directory/out2" "$directory/of.$child"
else
  fail "fork: $(ls "$directory")"
fi
profiled 512 fork && check 512 "$directory/out" "$directory/heap"
# By a name without the process in it the child, which ends later in the midst of the parent, writes nothing.
{ cat "$directory/out"; echo "truth medium 200 2000 2000"; } >"$directory/out2"
if python3 "$abs_top_srcdir/tests/profile_check.py" 512 "$directory/out2" "$directory/heap" >/dev/null; then
  fail "the child wrote over its parent's file"
fi

# The signal, to a program that sleeps, and whose heap is too small to be meshed.
(cd "$directory" && MESH_UFFD_PROFILE=512 MESH_UFFD_PROFILE_SIGNAL=12 LD_PRELOAD=$LIB exec "$program" wait . >out 2>err) &
process=$!
for _ in $(seq 1200); do
  grep -q ready "$directory/out" && break
  sleep 0.05
done
for n in 1 2; do
  file=$directory/mesh-uffd.$process.$n.pb.gz
  kill -USR2 $process
  for _ in $(seq 1200); do
    python3 -c 'import gzip, sys; gzip.open(sys.argv[1]).read()' "$file" 2>/dev/null && break
    sleep 0.05
  done
  sed -i '/^ready/d' "$directory/out"
  check 512 "$directory/out" "$file"
done
kill $process
wait $process 2>/dev/null

profiled 1000 errors && profiled 0 errors && echo "ok errors"
profiled 1000 errors MESH_UFFD_PROFILE_FILE=/nonexistent/x && grep -q 'cannot be written to /nonexistent/x: error 2' "$directory/err" ||
  fail "a file that cannot be written is not named: $(cat "$directory/err")"
if [ "$(find "$directory" -name heap -perm 600 | wc -l)" != 1 ]; then fail "others may read a profile"; fi

finish
