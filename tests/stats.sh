#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What MALLOCSTATS prints, that the kernel's fast ways are used by default and can be done without, and how the options
# are read. Runs the sparse program, which is looked for in abs_top_builddir/tests, beside the script and here.
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

directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
failed=0
unset LD_PRELOAD MALLOCSTATS
for name in MESH CPU_PERCENT PAUSE_US DECAY_MS MAPPINGS DROP_CAPS RING; do unset "MESH_UFFD_$name"; done
for name in TIER EAGER VALIDATE FAIL; do unset "MESH_UFFD_TEST_$name"; done

fail() {
  echo "FAIL $1: $2"
  sed 's/^/    out: /' "$directory/$1.out"
  sed 's/^/    err: /' "$directory/$1.err"
  failed=1
}
ok() { echo "ok $1${2:+: $2}"; }
skip() { echo "skipped part: $1: $2"; }

# run NAME SECONDS VARIANT [VARIABLE=VALUE]...: in the background.
run() {
  name=$1 seconds=$2 variant=$3
  shift 3
  (
    if command -v timeout >/dev/null; then
      timeout -s KILL $((120 * ${MESH_UFFD_TEST_SLOW:-1})) env "$@" LD_PRELOAD="$LIB" "$program" "$seconds" "$variant"
    else
      env "$@" LD_PRELOAD="$LIB" "$program" "$seconds" "$variant"
    fi >"$directory/$name.out" 2>"$directory/$name.err"
    echo $? >"$directory/$name.status"
  ) &
}

# The number after a word that sparse prints at the start of a line.
value() { sed -n "s/^$2 \([0-9][0-9]*\)\$/\1/p" "$directory/$1.out"; }

# fine NAME: it ended well.
fine() {
  status=$(cat "$directory/$1.status")
  [ "$status" = 0 ] && return
  fail "$1" "status $status"
  return 1
}
silent() {
  fine "$1" || return
  [ ! -s "$directory/$1.err" ] && return
  fail "$1" "it is not silent"
  return 1
}

# expect NAME FIRST PATTERN...: from line FIRST on, the lines of standard error are these (extended expressions).
expect() {
  name=$1 line=$2
  shift 2
  for pattern in "$@"; do
    if ! sed -n "${line}p" "$directory/$name.err" | grep -Eqx -e "$pattern"; then
      fail "$name" "line $line of the statistics must be '$pattern'"
      return 1
    fi
    line=$((line + 1))
  done
}

# ---- all runs, a few at a time ----
run level-1 2 "" MALLOCSTATS=1
run level-2 2 "" MALLOCSTATS=2
run default 2.5 ways UNUSED=1
run no-ring 2.5 stay MESH_UFFD_RING=0 SPARSE_PATIENT=1
wait
run no-mesh 2 stay MESH_UFFD_MESH=0
run level-0 0.1 "" MALLOCSTATS=0
wait
run small 0.1 "" MALLOCSTATS=1 MESH_UFFD_MESH=0
run bad 2 "" MESH_UFFD_MESH=2 MESH_UFFD_CPU_PERCENT=0 MESH_UFFD_PAUSE_US=19 MESH_UFFD_DECAY_MS=1800001 \
  MESH_UFFD_MAPPINGS=-1 MESH_UFFD_DROP_CAPS=yes MESH_UFFD_RING= MESH_UFFD_TEST_TIER=5 MESH_UFFD_TEST_EAGER=4294967297 \
  MALLOCSTATS=3 SPARSE_PATIENT=1
run bad-twin 2 "" SPARSE_PATIENT=1
run unknown 0.1 "" MESH_UFFD_MESHES=0 MESH_UFFD_=1 MESH_UFFD_ring=0 OTHER_MESH_UFFD_MESH=0
wait

# ---- statistics ----
number='[0-9]+'
megabytes='[0-9]+\.[0-9]'
stats_lines() {
  expect "$1" 1 \
    "MESH COUNT:         $number" \
    "Meshed MB \(total\):  $megabytes" \
    "Meshed pages HWM:   $number" \
    "Meshed MB HWM:      $megabytes" \
    "MH Alloc Count:     $number" \
    "MH Free  Count:     $number" \
    "MH High Water Mark: $number" \
    'tier:               (unknown|full|full, write-protect|user-only|none) \(.+\)' \
    "passes:             $number, $megabytes ms in all, longest $number us" \
    "faults resolved:    $number, longest $number us" \
    "pages refused:      $number by the kernel; units: $number busy, $number exempt, $number overlap, $number shared, $number no mapping" \
    "mappings in use:    $number" \
    "given back:         $megabytes MB by meshing, $megabytes MB of unused pages; mesh files hold $megabytes MB" \
    "operations:         $number by ring, $number by vector, $number plain"
}
for name in level-1 small; do
  if fine $name && stats_lines $name; then
    lines=$(grep -c "" "$directory/$name.err")
    if [ "$lines" != 14 ]; then fail "$name" "$lines lines, must be 14"; else ok "$name"; fi
  fi
done
if fine level-2 && stats_lines level-2 &&
  expect level-2 15 'class +size +span pages +spans +live slots +free slots +meshed runs +runs'; then
  if sed 1,15d "$directory/level-2.err" | grep -Evqx '( +[0-9]+){8}'; then
    fail level-2 "the table has other lines than eight numbers"
  elif ! sed 1,15d "$directory/level-2.err" | grep -Eqx ' +[0-9]+ +256( +[0-9]+){6}'; then
    fail level-2 "the table has no class of 256 bytes"
  else
    ok level-2 "$(sed 1,15d "$directory/level-2.err" | grep -c '') classes"
  fi
fi
if silent level-0; then ok level-0; fi

# What is printed is what is counted.
if fine level-1; then
  printed=$(sed -n 's/^MESH COUNT: *//p' "$directory/level-1.err")
  counted=$(value level-1 meshes)
  if [ "$printed" -lt "$counted" ]; then fail level-1 "MESH COUNT is $printed, $counted are counted before"; fi
fi

# ---- the ways to the kernel ----
tier=$(value default tier)
for name in default no-ring; do
  if ! silent $name; then
    :
  elif [ "$tier" -gt 2 ] || [ "$tier" = 0 ]; then
    skip $name "tier $tier does without a ring"
  elif [ "$(value $name meshes)" = 0 ]; then
    fail $name "nothing was meshed"
  elif [ $name = no-ring ]; then
    if [ "$(value $name ring)" = 0 ]; then ok $name; else fail $name "the ring is used"; fi
  elif [ "$(value $name ring)" != 0 ]; then
    ok ring "$(value $name ring) operations"
  elif [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null)" != 0 ]; then
    skip ring "io_uring is disabled here, or the kernel is older than 6.6 and does not say"
  else
    fail $name "the ring is not used"
  fi
done
# From Linux 6.13 on a process may give many ranges of its own back in one call.
kernel=$(uname -r | sed -n 's/^\([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
if [ "${kernel% *}" -lt 6 ] || { [ "${kernel% *}" = 6 ] && [ "${kernel#* }" -lt 13 ]; }; then
  skip vector "Linux $(uname -r) has none"
elif fine default; then
  if [ "$(value default vector)" != 0 ]; then
    ok vector "$(value default vector) ranges"
  else
    fail default "no range was given back by vector"
  fi
fi

# ---- options ----
if silent no-mesh; then
  if [ "$(value no-mesh meshes)" = 0 ] && [ "$(value no-mesh tier)" = 0 ]; then
    ok no-mesh
  else
    fail no-mesh "there are meshes"
  fi
fi

bad_options='MESH_UFFD_MESH=2|1|0|1
MESH_UFFD_CPU_PERCENT=0|5|1|100
MESH_UFFD_PAUSE_US=19|200|20|100000
MESH_UFFD_DECAY_MS=1800001|1000|0|1800000
MESH_UFFD_MAPPINGS=-1|80|0|100
MESH_UFFD_DROP_CAPS=yes|0|0|1
MESH_UFFD_RING=|1|0|1
MESH_UFFD_TEST_TIER=5|1|1|4
MESH_UFFD_TEST_EAGER=4294967297|0|0|1
MALLOCSTATS=3|0|0|2'
if fine bad; then
  wrong=""
  while IFS='|' read -r option default low high; do
    grep -Fqx -e "mesh-uffd: $option is not a number from $low to $high; using $default" "$directory/bad.err" ||
      wrong="$wrong $option"
  done <<END
$bad_options
END
  # With the defaults it does what it does without any option; it would be another tier, or no meshes, if not.
  if [ -n "$wrong" ]; then
    fail bad "not named:$wrong"
  elif [ "$(grep -c '' "$directory/bad.err")" != 10 ]; then
    fail bad "there are other lines"
  elif [ "$(value bad tier)" != "$(value bad-twin tier)" ]; then
    fail bad "the tier is not that of a run without options"
  elif [ "$(value bad-twin meshes)" != 0 ] && [ "$(value bad meshes)" = 0 ]; then
    fail bad "nothing is meshed"
  else
    ok bad
  fi
fi
if fine unknown; then
  grep -v -e 'unknown option MESH_UFFD_MESHES' -e 'unknown option MESH_UFFD_;' -e 'unknown option MESH_UFFD_=' \
    -e 'unknown option MESH_UFFD_ring' "$directory/unknown.err" >"$directory/rest"
  if [ "$(grep -c '^mesh-uffd: unknown option ' "$directory/unknown.err")" != 3 ] || [ -s "$directory/rest" ]; then
    fail unknown "must name three options"
  else
    ok unknown
  fi
fi
# ---- malloc_info ----
if ! command -v python3 >/dev/null; then
  skip malloc_info "there is no python3"
elif LD_PRELOAD="$LIB" PYTHONMALLOC=malloc python3 -c 'import ctypes
c = ctypes.CDLL(None)
keep = [bytes(300) for i in range(50000)]
c.fopen.restype = ctypes.c_void_p
to = ctypes.c_void_p(c.fopen(b"/dev/stdout", b"w"))
assert c.malloc_info(0, to) == 0 and c.malloc_info(1, to) == 22
c.fclose(to)' >"$directory/malloc_info.out" 2>"$directory/malloc_info.err" &&
  python3 - "$directory/malloc_info.out" 2>>"$directory/malloc_info.err" <<'END'
import sys, xml.etree.ElementTree
root = xml.etree.ElementTree.parse(sys.argv[1]).getroot()
assert root.tag == "malloc" and root.get("version") == "1" and root.get("allocator").startswith("mesh-uffd ")
classes = {int(c.get("size")): int(c.get("live")) for c in root.iter("class")}
assert any(320 <= size <= 384 and live >= 50000 for size, live in classes.items()), classes
assert int(root.find("live").get("size")) >= 50000 * 300 and root.find("meshing") is not None
END
then
  ok malloc_info
else
  fail malloc_info "its XML is wrong"
fi

skip secure "LD_PRELOAD of this path is ignored under secure execution, as are the options"

[ $failed = 0 ] || exit 1
echo passed
