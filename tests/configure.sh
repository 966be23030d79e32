#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# configure refuses clearly: other processors, 32 bits, other systems; and what is missing is named, all of it at once.
set -eu -o pipefail
: "${abs_top_srcdir:?}"
. "$abs_top_srcdir/tests/elsewhere.sh"
[ -x "$abs_top_srcdir/configure" ] || skip "the source tree has no configure"
cd "$directory"

# refuses PATTERN ARGUMENT...: fails, and says so.
refuses() {
  local pattern=$1
  shift
  if "$abs_top_srcdir/configure" "$@" >said 2>&1; then
    fail "configure $* goes on"
  elif grep -q -e "$pattern" said; then
    echo "ok configure $*: $(grep -e "$pattern" said | head -n 1)"
  else
    tail -n 5 said
    fail "configure $* does not say: $pattern"
  fi
}

# As if cc were a compiler for them.
refuses 'error: mesh-uffd runs on x86_64 and aarch64; this is riscv64' --host=riscv64-linux-gnu CC=cc CXX=c++
refuses 'error: mesh-uffd runs on x86_64 and aarch64; this is i686' --host=i686-linux-gnu CC=cc CXX=c++
refuses 'error: mesh-uffd needs Linux; this is freebsd' --host=x86_64-unknown-freebsd13 CC=cc CXX=c++
if echo 'int main(void) { return 0; }' | cc -m32 -x c - -o program 2>/dev/null; then
  refuses 'error: mesh-uffd needs a 64-bit address space' CC='cc -m32'
else
  echo "skipped part: 32 bits on x86_64: cc -m32 makes no programs here"
fi
PKG_CONFIG_LIBDIR=$directory refuses 'apt-get install liburing-dev libcap-ng-dev libcriterion-dev$'
PKG_CONFIG_LIBDIR=$directory refuses 'apt-get install liburing-dev$' --without-libcap-ng --without-criterion
finish
