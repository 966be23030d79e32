#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Where there is no archive of liburing, the library opens the shared one: it needs libc alone, shows nothing of it, and
# the ring carries operations; and libcap-ng, which it always opens, by none but who drops the capability.
set -eu -o pipefail
: "${abs_top_srcdir:?}"
. "$abs_top_srcdir/tests/elsewhere.sh"
# As if there were no archives.
build --disable-static-deps --enable-werror --without-criterion --without-libpng
grep -q 'MU_OPEN_DEPS=1' Makefile || fail "nothing is opened"
said make tests/sparse
export LIB=$PWD/.libs/libmesh-uffd.so abs_top_builddir=$PWD
said "$abs_top_srcdir/tests/exports.sh"
echo "ok needs libc alone, and exports what it should"

# sparse SECONDS VARIANT VARIABLE=VALUE...: its figures go to $directory/said.
sparse() { said env "$3" LD_PRELOAD="$LIB" tests/sparse "$1" "$2"; }
value() { sed -n "s/^$1 \([0-9][0-9]*\)\$/\1/p" "$directory/said"; }
sparse 2 ways MESH_UFFD_RING=1
tier=$(value tier) ring=$(value ring)
if [ "$ring" != 0 ]; then
  echo "ok ring: $ring operations"
elif [ "$tier" -gt 2 ] || [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 1)" != 0 ]; then
  echo "skipped part: the ring; there is none in tier $tier, or io_uring is disabled"
else
  cat "$directory/said"
  fail "the ring carries nothing"
fi
sparse 1 stay MESH_UFFD_RING=0
[ "$(value ring)" = 0 ] || fail "MESH_UFFD_RING=0 is not obeyed"

# Nothing is opened by a process that could not use it.
for asked in MESH_UFFD_RING=0 MESH_UFFD_MESH=0; do
  # shellcheck disable=SC2016
  if env $asked LD_PRELOAD="$LIB" grep -q liburing /proc/self/maps; then fail "$asked: liburing is opened"; fi
done
env LD_PRELOAD="$LIB" grep -q liburing /proc/self/maps || fail "liburing is not opened"
env LD_PRELOAD="$LIB" grep -q libcap-ng /proc/self/maps && fail "libcap-ng is opened without need"

# libc has not begun when they are opened.
for asked in MESH_UFFD_RING=1 MESH_UFFD_DROP_CAPS=1; do
  # shellcheck disable=SC2016
  [ "$(env $asked SOME=thing LD_PRELOAD="$LIB" sh -c 'echo "$SOME"')" = thing ] || fail "$asked: the environment is lost"
done

status=0
"$abs_top_srcdir/tests/caps.sh" >"$directory/said" 2>&1 || status=$?
case $status in
0 | 77) echo "ok capabilities: $(tail -n 1 "$directory/said")" ;;
*)
  cat "$directory/said"
  fail "capabilities"
  ;;
esac
finish
