#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What `make install` installs is enough: programs that find it by pkg-config and by CMake are built and run, shared and
# static; the command finds its library where it was moved to; uninstalling leaves nothing. With ROOT= (empty, or a
# directory) what is installed there is tested instead, e.g. by packages.
set -u
: "${abs_top_srcdir:?}"
directory=$(mktemp -d) || exit 99
trap 'rm -rf "$directory"' EXIT
failed=0
fail() {
  echo "FAIL $*"
  sed 's/^/    /' "$directory/said" | tail -n 20
  failed=1
}
ok() { echo "ok $*"; }
skip() { echo "skipped part: $*"; }
unset LD_PRELOAD MAKEFLAGS MFLAGS MAKELEVEL

if [ -n "${ROOT+set}" ]; then
  root=$ROOT
  library=$(find "$root"/usr/lib "$root"/usr/local/lib -name 'libmesh-uffd.so.0' 2>/dev/null | head -n 1)
  built=''
else
  root=$directory/root
  built=${abs_top_builddir:?}
  if ! make -C "$built" install DESTDIR="$root" >"$directory/said" 2>&1; then
    fail "make install"
    exit 1
  fi
  library=$(find "$root" -name 'libmesh-uffd.so.0' | head -n 1)
fi
[ -n "$library" ] || { echo "FAIL nothing is installed"; exit 1; }
libdir=$(dirname "$library")
prefix=${library%%/lib/*}
if [ -n "$root" ]; then
  export PKG_CONFIG_SYSROOT_DIR=$root PKG_CONFIG_LIBDIR=$libdir/pkgconfig:$(pkg-config --variable pc_path pkg-config)
fi

# right NAME PROGRAM: it compacts, and what it printed tells.
right() {
  if LD_LIBRARY_PATH=$libdir "$2" >"$directory/said" 2>&1 && [ -s "$directory/said" ]; then
    ok "$1: $(head -n 1 "$directory/said")"
  else
    fail "$1"
  fi
}

example=$abs_top_srcdir/examples/compact.c
if ! command -v cc >/dev/null || ! command -v pkg-config >/dev/null; then
  skip "pkg-config: there is no compiler, or no pkg-config"
else
  # shellcheck disable=SC2046 # words
  if cc -Wall -Werror "$example" $(pkg-config --cflags --libs mesh-uffd) -o "$directory/dynamic" >"$directory/said" 2>&1; then
    right "pkg-config" "$directory/dynamic"
  else
    fail "pkg-config"
  fi
  if [ ! -f "$libdir/libmesh-uffd.a" ]; then
    skip "pkg-config --static: there is no archive"
  # shellcheck disable=SC2046 # words
  elif cc -Wall -Werror -static "$example" $(pkg-config --static --cflags --libs mesh-uffd) -o "$directory/static" >"$directory/said" 2>&1; then
    right "pkg-config --static" "$directory/static"
  else
    fail "pkg-config --static"
  fi
fi

if ! command -v cmake >/dev/null; then
  skip "CMake: not installed"
else
  mkdir "$directory/consumer"
  cp "$example" "$directory/consumer/"
  cat >"$directory/consumer/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.16)
project(consumer C)
find_package(mesh-uffd 0.1 REQUIRED CONFIG)
add_executable(dynamic compact.c)
target_link_libraries(dynamic PRIVATE mesh-uffd::mesh-uffd)
if(TARGET mesh-uffd::static)
  add_executable(static compact.c)
  target_link_libraries(static PRIVATE mesh-uffd::static)
  target_link_options(static PRIVATE -static)
endif()
END
  if cmake -S "$directory/consumer" -B "$directory/consumer/build" -DCMAKE_PREFIX_PATH="$prefix" >"$directory/said" 2>&1 &&
    cmake --build "$directory/consumer/build" >"$directory/said" 2>&1; then
    right "CMake" "$directory/consumer/build/dynamic"
    [ ! -x "$directory/consumer/build/static" ] || right "CMake, static" "$directory/consumer/build/static"
  else
    fail "CMake"
  fi
  sed -i 's/mesh-uffd 0.1 /mesh-uffd 0.99 /' "$directory/consumer/CMakeLists.txt"
  if cmake -S "$directory/consumer" -B "$directory/consumer/other" -DCMAKE_PREFIX_PATH="$prefix" >"$directory/said" 2>&1; then
    fail "CMake takes a version that is too old"
  else
    ok "CMake refuses a version that is too old"
  fi
fi

# shellcheck disable=SC2016 # for the program
found=$("$prefix/bin/mesh-uffd" run -q -- sh -c 'echo "$LD_PRELOAD"')
if [ "$(realpath "$found")" = "$(realpath "$library")" ]; then ok "the command finds its library"; else
  echo "$found" >"$directory/said"
  fail "the command finds another library"
fi

if [ -n "$built" ]; then
  make -C "$built" uninstall DESTDIR="$root" >"$directory/said" 2>&1 || fail "make uninstall"
  find "$root" ! -type d >"$directory/said"
  if [ -s "$directory/said" ]; then fail "uninstalling leaves files"; else ok "uninstalling leaves nothing"; fi
fi
[ $failed = 0 ] || exit 1
echo passed
