#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The library has its probes, and examples/probes.bt shows what they tell, where bpftrace works.
set -u
: "${LIB:?}" "${abs_top_srcdir:?}" "${abs_top_builddir:?}"
directory=$(mktemp -d) || exit 99
process=''
# shellcheck disable=SC2317 # called by trap
clean_up() {
  [ -z "$process" ] || kill -KILL "$process" 2>/dev/null
  rm -rf "$directory"
}
trap clean_up EXIT
unset LD_PRELOAD

readelf -nW "$LIB" >"$directory/notes" 2>/dev/null
if ! grep -q 'Provider: mesh_uffd' "$directory/notes"; then
  if grep -q MU_HAVE_SDT "$abs_top_builddir/Makefile"; then
    echo "FAIL there are no probes"
    exit 1
  fi
  echo "skipped: built without sys/sdt.h"
  exit 77
fi
found=$(sed -n 's/^ *Name: //p' "$directory/notes" | sort -u | tr '\n' ' ')
if [ "$found" != 'meshed pass reclaimed refused waited ' ]; then
  echo "FAIL probes are $found"
  exit 1
fi
echo "ok probes: $found"
for name in $found; do
  grep -q "mesh_uffd:$name " "$abs_top_srcdir/examples/probes.bt" || {
    echo "FAIL examples/probes.bt does not use $name"
    exit 1
  }
done

if ! command -v bpftrace >/dev/null || [ "$(id -u)" != 0 ]; then
  echo "skipped part: examples/probes.bt: there is no bpftrace, or this is not root"
  exit 0
fi
sed "s|libmesh-uffd:|$LIB:|" "$abs_top_srcdir/examples/probes.bt" >"$directory/probes.bt"
# Of all processes that have the library, since what is of interest comes early in them.
timeout -s INT -k 20 30 bpftrace "$directory/probes.bt" >"$directory/out" 2>"$directory/err" &
process=$!
for _ in $(seq 100); do grep -q '^Attaching' "$directory/out" && break; sleep 0.1; done
for _ in 1 2 3; do LD_PRELOAD=$LIB "$abs_top_builddir/tests/sparse" 3 >"$directory/sparse" 2>&1; done
kill -INT "$process"
status=0
wait "$process" || status=$?
process=''
if [ $status = 137 ]; then # on a busy machine it may still have been attaching itself when it was to end
  echo "skipped part: examples/probes.bt: bpftrace did not end when it was told to"
elif ! grep -q '^Attaching' "$directory/out"; then
  echo "skipped part: examples/probes.bt: bpftrace does not work here: $(head -n 1 "$directory/err")"
elif ! grep -q '^tier [12]$' "$directory/sparse"; then
  echo "skipped part: what examples/probes.bt shows: nothing is meshed in the background in this tier"
elif grep -Eq '^@passes: [1-9]' "$directory/out"; then
  echo "ok examples/probes.bt: $(grep '^@passes' "$directory/out")"
else
  echo "FAIL examples/probes.bt shows no passes"
  cat "$directory/out" "$directory/err"
  exit 1
fi
