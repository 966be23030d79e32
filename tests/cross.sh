#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The library built for aarch64: unit tests, and a program with the library preloaded, in an emulator of processes. It
# has no userfaultfd, so tests of meshing are skipped there.
set -eu -o pipefail
: "${abs_top_srcdir:?}"
. "$abs_top_srcdir/tests/elsewhere.sh"
host=aarch64-linux-gnu
command -v $host-gcc >/dev/null || skip "there is no $host-gcc (Debian packages gcc-$host, libc6-dev-arm64-cross)"
emulator=$(command -v qemu-aarch64-static qemu-aarch64 | head -n 1) || skip "there is no qemu-aarch64 (Debian package qemu-user-static)"
export QEMU_LD_PREFIX=${QEMU_LD_PREFIX:-/usr/$host}
# It keeps a record of each page of a reservation, and takes half a minute for a terabyte.
export QEMU_RESERVED_VA=8G

build --host=$host --enable-werror --without-liburing --without-libcap-ng --without-criterion --without-libpng
readelf -hW .libs/libmesh-uffd.so | grep -q 'Machine: *AArch64' || fail "the library is not for aarch64"
unit_tests "$emulator"
run_test tests/api "$emulator" -E LD_PRELOAD="$PWD/.libs/libmesh-uffd.so" tests/api
run_test tests/threads "$emulator" -E LD_PRELOAD="$PWD/.libs/libmesh-uffd.so" tests/threads
finish
