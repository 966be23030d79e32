#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# CAP_SYS_PTRACE gives the full tier to a user who may not open /dev/userfaultfd, and MESH_UFFD_DROP_CAPS=1 takes it from
# every thread while meshing goes on. Needs root. Runs the sparse program, which is looked for in
# abs_top_builddir/tests, beside the script and here.
LIB=${LIB:-}
if [ -z "$LIB" ] || [ ! -f "$LIB" ]; then
  echo "skipped: LIB does not name the library"
  exit 77
fi
if [ "$(id -u)" != 0 ]; then
  echo "skipped: needs root, to run a program with a capability"
  exit 77
fi

directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
# Where another user can read them.
chmod 755 "$directory"
cp "$LIB" "$directory/library.so" || exit 1
for try in "${abs_top_builddir:-.}/tests" "$(dirname "$0")" .; do
  [ -x "$directory/sparse" ] || cp "$try/sparse" "$directory/sparse" 2>/dev/null
done
[ -x "$directory/sparse" ] || { echo "FAIL: there is no sparse program"; exit 1; }
chmod 755 "$directory"/*
unset LD_PRELOAD MALLOCSTATS
for name in MESH RING DROP_CAPS TEST_TIER TEST_EAGER TEST_VALIDATE TEST_FAIL; do unset "MESH_UFFD_$name"; done

failed=0
ptrace=524288 # 1 << 19
other="setpriv --reuid=65534 --regid=65534 --clear-groups"
with="$other --inh-caps=+sys_ptrace --ambient-caps=+sys_ptrace"

fail() {
  echo "FAIL $1: $2"
  sed 's/^/    /' "$directory/$1.out"
  failed=1
}
value() { sed -n "s/^$2 \([0-9][0-9]*\)\$/\1/p" "$directory/$1.out"; }
tiers() {
  # shellcheck disable=SC2086 # words are wanted
  $1 "$directory/sparse" 0 probe 2>&1 | sed -n 's/^tiers\( [0-9]\).*/\1/p'
}

best=$(tiers "$with")
if [ -z "$best" ]; then
  # shellcheck disable=SC2086
  echo "skipped: no program can be given the capability: $($with true 2>&1)"
  exit 77
elif [ "$best" -gt 2 ]; then
  echo "skipped: the capability does not give the full tier here"
  exit 77
fi
without=$(tiers "$other")
[ "$without" -gt 2 ] ||
  echo "skipped part: that it is the capability: tier$without is to be had without it, by /dev/userfaultfd or sysctl"

# run NAME COMMAND [VARIABLE=VALUE]...: sparse as that user, in the background.
run() {
  name=$1 command=$2
  shift 2
  (
    [ -z "$(command -v timeout)" ] || command="timeout -s KILL $((60 * ${MESH_UFFD_TEST_SLOW:-1})) $command"
    # shellcheck disable=SC2086 # words are wanted
    $command env "$@" LD_PRELOAD="$directory/library.so" "$directory/sparse" 20 caps >"$directory/$name.out" 2>&1
    echo $? >"$directory/$name.status"
  ) &
}

# check NAME TIER: it ended well and has meshed in that tier.
check() {
  status=$(cat "$directory/$1.status")
  if [ "$status" != 0 ]; then
    fail "$1" "status $status"
  elif [ "$(value "$1" tier)" != "$2" ]; then
    fail "$1" "tier is $(value "$1" tier), must be $2"
  elif [ "$2" -le 2 ] && [ "$(value "$1" meshes)" = 0 ]; then
    fail "$1" "nothing was meshed"
  else
    return 0
  fi
  return 1
}

# threads NAME has|lacks: each of them has the capability, effective and permitted, or lacks it.
threads() {
  count=0
  while read -r _ thread effective permitted; do
    count=$((count + 1))
    for set in "$effective" "$permitted"; do
      if [ $((0x$set & ptrace)) = 0 ]; then is=lacks; else is=has; fi
      if [ $is != "$2" ]; then
        fail "$1" "$thread $is the capability: CapEff $effective, CapPrm $permitted"
        return 1
      fi
    done
  done <<END
$(grep '^caps ' "$directory/$1.out")
END
  # The program, the mesher, who answers faults.
  if [ $count -lt 3 ]; then
    fail "$1" "only $count threads"
    return 1
  fi
  echo "ok $1: tier $(value "$1" tier), $(value "$1" meshes) meshes, each of $count threads $2 the capability"
}

run capability "$with"
run dropped "$with" MESH_UFFD_DROP_CAPS=1
wait
# Who has nothing to drop is told nothing; root's device or capability is dropped as well.
run nothing-to-drop "$other" MESH_UFFD_DROP_CAPS=1
run root-dropped env MESH_UFFD_DROP_CAPS=1
wait

if check capability "$((best))"; then threads capability has; fi
if check dropped "$((best))"; then threads dropped lacks; fi
if check root-dropped "$(($(tiers env)))"; then threads root-dropped lacks; fi
if check nothing-to-drop "$((without))"; then
  if grep -q '^mesh-uffd:' "$directory/nothing-to-drop.out"; then
    fail nothing-to-drop "it is not silent"
  else
    echo "ok nothing-to-drop: tier $((without))"
  fi
fi

[ $failed = 0 ] || exit 1
echo passed
