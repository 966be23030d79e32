#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Little address space, and a kernel that does not overcommit: programs run, meshing goes on, and when memory is out
# malloc says so. As root, vm.overcommit_memory is changed for some seconds and put back. Runs the sparse program, which
# is looked for in abs_top_builddir/tests, beside the script and here.
LIB=${LIB:-}
if [ -z "$LIB" ] || [ ! -f "$LIB" ]; then
  echo "skipped: LIB does not name the library"
  exit 77
fi
case $LIB in
  */*) LIB=$(cd "$(dirname "$LIB")" && pwd)/$(basename "$LIB") ;;
esac
for try in "${abs_top_builddir:-.}/tests" "$(dirname "$0")" .; do
  [ ! -x "$try/sparse" ] || { program=$try/sparse; break; }
done
[ -n "${program:-}" ] || { echo "FAIL: there is no sparse program"; exit 1; }

setting=/proc/sys/vm/overcommit_memory
before=""
directory=$(mktemp -d) || exit 1
# shellcheck disable=SC2317 # called by the trap
finish() {
  [ -z "$before" ] || echo "$before" >$setting
  rm -rf "$directory"
}
trap finish EXIT
trap 'exit 1' HUP INT QUIT PIPE TERM
failed=0
unset LD_PRELOAD MALLOCSTATS
for name in MESH RING TEST_TIER TEST_EAGER TEST_VALIDATE TEST_FAIL; do unset "MESH_UFFD_$name"; done

fail() {
  echo "FAIL $1: $2"
  sed 's/^/    /' "$directory/$1.out"
  failed=1
}
value() { sed -n "s/^$2 \([0-9][0-9]*\)\$/\1/p" "$directory/$1.out"; }

# run NAME KB COMMAND [ARGUMENT]...: under LIB with that much address space.
run() {
  name=$1 kb=$2
  shift 2
  (
    # shellcheck disable=SC3045 # where it is unknown, it fails
    ulimit -c 0 && ulimit -v "$kb" || exit 99
    if command -v timeout >/dev/null; then
      exec timeout -s KILL $((90 * ${MESH_UFFD_TEST_SLOW:-1})) env LD_PRELOAD="$LIB" "$@"
    else
      exec env LD_PRELOAD="$LIB" "$@"
    fi
  ) >"$directory/$name.out" 2>&1
  echo $? >"$directory/$name.status"
}

# sparse_is_fine NAME: it ended well, and has meshed if it can while it runs.
sparse_is_fine() {
  status=$(cat "$directory/$1.status")
  if [ "$status" != 0 ]; then
    fail "$1" "status $status"
  elif grep -q '^mesh-uffd:' "$directory/$1.out"; then
    fail "$1" "it is not silent"
  elif [ "$(value "$1" tier)" -ge 1 ] && [ "$(value "$1" tier)" -le 2 ] && [ "$(value "$1" meshes)" = 0 ]; then
    fail "$1" "nothing was meshed"
  else
    echo "ok $1: tier $(value "$1" tier), $(value "$1" meshes) meshes, pss $(value "$1" pss) kB"
  fi
}

exhaust_is_fine() {
  status=$(cat "$directory/$1.status")
  if [ "$status" != 0 ]; then
    fail "$1" "status $status"
  else
    echo "ok $1: $(sed -n 's/^exhausted \([0-9]*\) \([0-9]*\)$/\1 kB, and \2 kB again/p' "$directory/$1.out")"
  fi
}

# ---- address space ----
# shellcheck disable=SC3045
if ! (ulimit -v 300000) 2>"$directory/why"; then
  echo "skipped part: address space: $(tail -n 1 "$directory/why")"
else
  for kb in 300000 2000000; do run "address-space-$kb" $kb "$program" 20 & done
  wait
  for kb in 300000 2000000; do sparse_is_fine "address-space-$kb"; done
  for kb in 60000 150000 300000; do run "exhaust-$kb" $kb "$program" 0 exhaust & done
  wait
  for kb in 60000 150000 300000; do exhaust_is_fine "exhaust-$kb"; done
fi

# ---- no overcommit ----
# What all processes together may take then, and have taken, in kB.
limit=$(sed -n 's/^CommitLimit: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
taken=$(sed -n 's/^Committed_AS: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
now=$(cat $setting 2>/dev/null)
if [ -z "$now" ] || ! echo "$now" 2>/dev/null >$setting; then
  echo "skipped part: overcommit: $setting cannot be written"
elif [ $((taken + 1000000)) -ge "${limit:-0}" ]; then
  echo "skipped part: overcommit: $taken of $limit kB are committed, the machine would not bear it"
else
  program_name="awk"
  # What a wrapper of another python needs is not ours to know.
  if /usr/bin/python3 -c 'print(1)' >/dev/null 2>&1; then program_name=/usr/bin/python3; fi
  if [ $program_name = awk ]; then
    set -- awk 'BEGIN { for (i = 0; i < 200000; i++) t["k" i % 30000] = t["k" i % 30000] i; print length(t["k7"]) }'
  else
    set -- env PYTHONMALLOC=malloc $program_name -c 'd = {}
for i in range(400000): d[i % 90000] = "x" * (i % 700)
print(sum(len(v) for v in d.values()))'
  fi
  "$@" >"$directory/right" 2>&1
  before=$now
  echo 2 >$setting
  run no-overcommit unlimited "$program" 20
  run program unlimited "$@"
  run exhaust-strictly 150000 "$program" 0 exhaust
  echo "$before" >$setting
  before=""
  sparse_is_fine no-overcommit
  if [ "$(cat "$directory/program.status")" = 0 ] && cmp -s "$directory/right" "$directory/program.out"; then
    echo "ok program: ${program_name##*/} without overcommit"
  else
    fail program "$program_name: status $(cat "$directory/program.status")"
  fi
  exhaust_is_fine exhaust-strictly
  [ "$(cat $setting)" = "$now" ] || { echo "FAIL: $setting is $(cat $setting), was $now"; failed=1; }
fi

[ $failed = 0 ] || exit 1
echo passed
