#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The kernel refuses, once, each of the ioctls that a pass is made of, and each at many places of a program's life: the
# sparse program must end well, with every byte as it was, and go on being meshed. Refused for ever: the same, but for
# the meshing. And no thread can be started: there is no meshing, and the statistics say so. The program is looked for in
# abs_top_builddir/tests, beside the script and here. MESH_UFFD_TEST_LONG=1: more places.
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
unset LD_PRELOAD MALLOCSTATS
for name in MESH RING DROP_CAPS TEST_TIER TEST_EAGER TEST_VALIDATE TEST_FAIL; do unset "MESH_UFFD_$name"; done

directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
limit=
command -v timeout >/dev/null && limit="timeout -s KILL $((120 * ${MESH_UFFD_TEST_SLOW:-1}))"
tiers=" $("$program" 0 probe | sed -n 's/^tiers//p') "
failed=0
count=0
names=""

fail() {
  echo "FAIL $1: $2"
  sed 's/^/    /' "$directory/$1.out"
  failed=1
}
value() { sed -n "s/^$2 \([0-9][0-9]*\)\$/\1/p" "$directory/$1.out"; }

# run NAME SECONDS VARIABLE=VALUE...: in the background, four at a time.
run() {
  name=$1 seconds=$2
  shift 2
  (
    # shellcheck disable=SC3045 # where it is unknown, cores may be written
    ulimit -c 0 2>/dev/null
    $limit env MESH_UFFD_TEST_EAGER=1 MESH_UFFD_TEST_VALIDATE=1 "$@" LD_PRELOAD="$LIB" "$program" "$seconds" \
      >"$directory/$name.out" 2>&1
    echo $? >"$directory/$name.status"
  ) 2>/dev/null &
  names="$names $name"
  count=$((count + 1))
  [ $((count % 4)) != 0 ] || wait
}

# right NAME: it ended well and silently.
right() {
  status=$(cat "$directory/$1.status")
  case $status in
    0) if grep -q '^mesh-uffd:' "$directory/$1.out"; then fail "$1" "it is not silent"; else return 0; fi ;;
    137 | 142) fail "$1" "it hangs" ;;
    *) fail "$1" "status $status" ;;
  esac
  return 1
}

# Of all that ran since the last time. meshes: each has meshed.
finish() {
  wait
  bad=0
  for name in $names; do
    if ! right "$name"; then
      bad=1
    elif [ "$2" = meshes ] && [ "$(value "$name" meshes)" = 0 ]; then
      fail "$name" "nothing was meshed"
      bad=1
    fi
  done
  # shellcheck disable=SC2086 # words are wanted
  set -- "$1" "$2" $names
  [ $bad = 1 ] || echo "ok $1: $(($# - 2)) runs"
  names=""
}

# each TIER REQUEST ERRNO [PLACES]: at single places, over a stretch, and from some place on.
each() {
  for at in ${4:-$places}; do
    run "$2-$1-$3@$at" 3 SPARSE_PATIENT=1 "MESH_UFFD_TEST_TIER=$1" "MESH_UFFD_TEST_FAIL=$2:$at:$3"
  done
  finish "$2 in tier $1, errno $3 now and then" meshes
  [ "$2" != UFFDIO_WAKE ] || return # nothing helps who waits then; that it works is found out at the start
  for at in 0- 6- 40-; do
    run "$2-$1-$3@$at" 1 "MESH_UFFD_TEST_TIER=$1" "MESH_UFFD_TEST_FAIL=$2:$at:$3"
  done
  finish "$2 in tier $1, errno $3 from some time on" whatever
}

places="3 4 5 6 7 9 12 5-30 20-200"
[ "${MESH_UFFD_TEST_LONG:-0}" = 0 ] || places="$(seq -s ' ' 1 64) 5-30 20-200 100-1000"
short=$(echo "$places" | tr ' ' '\n' | grep -v -e - | tr '\n' ' ')

# errno values are Linux's: ENOENT 2, EAGAIN 11, ENOMEM 12, EBUSY 16, EEXIST 17, EINVAL 22.
case $tiers in
  *" 1 "*)
    each 1 UFFDIO_MOVE 16
    each 1 UFFDIO_MOVE 11
    each 1 UFFDIO_REGISTER 12
    # So often in a row, and no barrier is ever closed again.
    each 1 UFFDIO_UNREGISTER 12 "$short 20-26"
    each 1 UFFDIO_WRITEPROTECT 11
    each 1 UFFDIO_ZEROPAGE 12
    each 1 UFFDIO_COPY 12
    each 1 UFFDIO_WAKE 22
    ;;
  *) echo "skipped part: full tier: there is none here" ;;
esac
case $tiers in
  *" 2 "*)
    each 2 UFFDIO_WRITEPROTECT 12
    each 2 UFFDIO_WRITEPROTECT 11
    each 2 UFFDIO_REGISTER 12
    each 2 UFFDIO_UNREGISTER 12 "$short 20-26"
    ;;
  *) echo "skipped part: write-protection: there is none here" ;;
esac

# ---- threads ----
run no-thread 1 MESH_UFFD_TEST_FAIL=clone3:0-:11 MALLOCSTATS=1
run one-thread 1 MESH_UFFD_TEST_FAIL=clone3:1-:11 MALLOCSTATS=1
run second-try 3 MESH_UFFD_TEST_FAIL=clone3:0:11 MALLOCSTATS=1
wait
names=""
if right no-thread; then
  if [ "$(value no-thread tier)" != 0 ] || [ "$(value no-thread meshes)" != 0 ]; then
    fail no-thread "it says that it meshes"
  elif ! grep -q '^tier: *unknown (no thread can be started' "$directory/no-thread.out"; then
    fail no-thread "the statistics do not say why"
  else
    echo "ok no-thread: $(grep '^tier:' "$directory/no-thread.out")"
  fi
fi
# The mesher without who answers faults.
if right one-thread; then
  if [ "$(value one-thread tier)" != 4 ]; then
    fail one-thread "tier $(value one-thread tier)"
  elif [ -n "${tiers##* 1 *}" ] || grep -q '^tier:.*fault thread' "$directory/one-thread.out"; then
    echo "ok one-thread: $(grep '^tier:' "$directory/one-thread.out")"
  else
    fail one-thread "the statistics do not say why"
  fi
fi
if right second-try; then
  if [ "$(value second-try tier)" = 0 ]; then
    fail second-try "no thread is ever started again"
  else
    echo "ok second-try: tier $(value second-try tier), $(value second-try meshes) meshes"
  fi
fi

[ $failed = 0 ] || exit 1
echo passed
