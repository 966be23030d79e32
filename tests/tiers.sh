#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Every tier that this machine has: the sparse program must be meshed by the library itself, report the right tier and
# end at under half of its peak, as root and as another user; racing_writers and forking must pass in tier 2. Programs
# are looked for in abs_top_builddir/tests, beside the script and here. SECONDS_EACH: how long sparse may take.
LIB=${LIB:-}
if [ -z "$LIB" ] || [ ! -f "$LIB" ]; then
  echo "skipped: LIB does not name the library"
  exit 77
fi

here=$(dirname "$0")
directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
# Where another user can read them.
chmod 755 "$directory"
cp "$LIB" "$directory/library.so" || exit 1
for program in sparse racing_writers forking; do
  for try in "${abs_top_builddir:-.}/tests" "$here" .; do
    [ -x "$directory/$program" ] || cp "$try/$program" "$directory/$program" 2>/dev/null
  done
  [ -x "$directory/$program" ] || { echo "FAIL: there is no $program"; exit 1; }
done
chmod 755 "$directory"/*

seconds=${SECONDS_EACH:-30}
failed=0
tested=0
jobs=""
unset LD_PRELOAD MALLOCSTATS
for name in MESH RING TEST_TIER TEST_EAGER TEST_VALIDATE TEST_FAIL EXPECT_TIER; do unset "MESH_UFFD_$name"; done

fail() {
  echo "FAIL $1: $2"
  sed 's/^/    /' "$directory/$1.out"
  failed=1
}

# start NAME COMMAND [ARGUMENT]...: runs beside the others, LD_PRELOAD is the command's own affair.
start() {
  name=$1
  shift
  (
    "$@" >"$directory/$name.out" 2>&1
    echo $? >"$directory/$name.status"
  ) &
}

limited() {
  if command -v timeout >/dev/null; then timeout -s KILL $((120 * ${MESH_UFFD_TEST_SLOW:-1})) "$@"; else "$@"; fi
}

value() { sed -n "s/^$2 \([0-9][0-9]*\)\$/\1/p" "$directory/$1.out"; }

# sparse_tiers WHO [COMMAND ARGUMENT...]: starts sparse as that user once for each tier. The command becomes the user.
sparse_tiers() {
  who=$1
  shift
  if ! "$@" "$directory/sparse" 0 probe >"$directory/probe" 2>&1; then
    echo "skipped part: $who: $(tail -n 1 "$directory/probe")"
    return
  fi
  tiers=$(sed -n 's/^tiers//p' "$directory/probe")
  if [ -z "$tiers" ]; then
    echo "skipped part: $who: no tier: Linux before 5.9, or /proc/self/pagemap cannot be read"
    return
  fi
  echo "$who has the tiers$tiers"
  for asked in 1 2 3 4; do
    right=""
    for tier in $tiers; do
      if [ -z "$right" ] && [ "$tier" -ge "$asked" ]; then right=$tier; fi
    done
    if [ "$right" != "$asked" ]; then
      echo "skipped part: $who, tier $asked: not to be had here"
      # The best there is must be found without being asked for; once is enough.
      [ "$asked" = 1 ] || continue
    fi
    jobs="$jobs $who-$asked:$right"
    start "$who-$asked" limited "$@" env MESH_UFFD_TEST_TIER="$asked" LD_PRELOAD="$directory/library.so" \
      "$directory/sparse" "$seconds"
  done
}

# check NAME TIER: what sparse has said.
check() {
  status=$(cat "$directory/$1.status")
  peak=$(value "$1" peak)
  pss=$(value "$1" pss)
  tier=$(value "$1" tier)
  meshes=$(value "$1" meshes)
  tested=$((tested + 1))
  if [ "$status" != 0 ]; then
    fail "$1" "status $status"
  elif [ "$tier" != "$2" ]; then
    fail "$1" "tier is $tier, must be $2"
  elif [ "${meshes:-0}" = 0 ]; then
    fail "$1" "nothing was meshed in $seconds s"
  elif [ -z "$peak" ] || [ -z "$pss" ]; then
    echo "skipped part: $1: memory, there is no /proc/self/smaps_rollup"
  elif [ $((pss * 2)) -ge "$peak" ]; then
    fail "$1" "$pss kB at the end, which is not under half of $peak kB"
  else
    echo "ok $1: tier $tier, $meshes meshes, $peak kB at the peak, $pss kB at the end"
  fi
}

if [ "$(id -u)" = 0 ]; then
  sparse_tiers root
  if setpriv --reuid=65534 --regid=65534 --clear-groups true 2>"$directory/why"; then
    sparse_tiers nobody setpriv --reuid=65534 --regid=65534 --clear-groups
  else
    echo "skipped part: nobody: $(tail -n 1 "$directory/why")"
  fi
else
  echo "skipped part: root and nobody: this is user $(id -u)"
  sparse_tiers this-user
fi
wait
for job in $jobs; do check "${job%:*}" "${job#*:}"; done

# As the one who runs this.
second=$("$directory/sparse" 0 probe | sed -n '/^tiers.* 2/p')
if [ -z "$second" ]; then
  echo "skipped part: racing_writers and forking in tier 2: not to be had here"
else
  for program in racing_writers forking; do
    start $program limited env MESH_UFFD_TEST_TIER=2 MESH_UFFD_TEST_EAGER=1 MESH_UFFD_TEST_VALIDATE=1 \
      MESH_UFFD_EXPECT_TIER=2 MESH_UFFD_TEST_SKIP=mlock,uring_fixed LD_PRELOAD="$directory/library.so" "$directory/$program"
  done
  wait
  for program in racing_writers forking; do
    status=$(cat "$directory/$program.status")
    if [ "$status" != 0 ]; then
      fail $program "status $status in tier 2"
    else
      tested=$((tested + 1))
      echo "ok $program: $(grep '^tier: ' "$directory/$program.out")"
    fi
  done
fi

[ $failed = 0 ] || exit 1
if [ $tested = 0 ]; then
  echo "skipped: no tier could be tested"
  exit 77
fi
echo passed
