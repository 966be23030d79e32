#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The library exports exactly the names of tests/exports.txt and needs the C library alone.
set -eu -o pipefail
: "${LIB:?}" "${abs_top_srcdir:?}"
status=0

# Without addresses, without the versions' own names (type A), types that only tell where a function lies folded.
exported() { nm -D --defined-only "$LIB" | awk '$2 != "A" { print ($2 == "W" || $2 == "i") ? "T" : $2, $3 }' | LC_ALL=C sort; }

if ! diff -u <(grep -v '^#' "$abs_top_srcdir/tests/exports.txt") <(exported); then
  echo "exported names differ from tests/exports.txt (- missing, + too many)"
  status=1
fi

needed=$(readelf -dW "$LIB" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
for name in $needed; do
  case $name in
  libc.so.* | ld-linux*.so.* | ld64.so.*) ;;
  *)
    echo "needs $name"
    status=1
    ;;
  esac
done

soname=$(readelf -dW "$LIB" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
if [ "$soname" != libmesh-uffd.so.0 ]; then
  echo "soname is $soname, not libmesh-uffd.so.0"
  status=1
fi
exit "$status"
