#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The library and its tests built with musl: unit tests, and programs of musl with the library preloaded.
set -eu -o pipefail
: "${abs_top_srcdir:?}"
. "$abs_top_srcdir/tests/elsewhere.sh"
command -v musl-gcc >/dev/null || skip "there is no musl-gcc (Debian packages musl-tools, linux-libc-dev)"
headers=/usr/include
[ -e "$headers/linux/userfaultfd.h" ] || skip "there are no headers of the kernel"

# musl-gcc sees nothing of glibc's directories: what it is to see, by itself.
mkdir "$directory/include" "$directory/lib"
ln -s "$headers/linux" "$headers/asm-generic" "$directory/include/"
ln -s "$(dirname "$(echo '#include <asm/unistd.h>' | cc -M -E - | grep -o '/[^ ]*/asm/unistd.h')")" "$directory/include/asm"
archive=$(cc -print-file-name=liburing.a)
if [ -e "$archive" ] && [ -e "$headers/liburing.h" ]; then # uses nothing of glibc
  ln -s "$archive" "$directory/lib/"
  ln -s "$headers/liburing.h" "$headers/liburing" "$directory/include/"
  set -- "LIBURING_CFLAGS=" "LIBURING_LIBS=-L$directory/lib -luring"
else
  set -- --without-liburing
fi

build CC=musl-gcc CPPFLAGS="-isystem $directory/include" --without-libcap-ng --without-criterion --without-libpng "$@"
readelf -dW .libs/libmesh-uffd.so | grep -q 'NEEDED.*\[libc\.so\]' || fail "the library does not need musl's libc.so"

# Not dlopen: musl refuses libraries with initial-exec variables. Not fork_order: musl's fork takes its lock of streams
# after all handlers, so nobody can take it before his own.
programs="api threads fork_raw racing_writers"
[ -z "${MESH_UFFD_TEST_LONG:-}" ] || programs="$programs fork_loop forking stress"
unit_tests ''
for program in $programs; do
  run_test "tests/$program" env LD_PRELOAD="$PWD/.libs/libmesh-uffd.so" "tests/$program"
done
finish
