# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Sourced by the scripts that begin alike: the built tree by its variables; a directory that goes at the end, as do
# processes in the background; what a script says, and its status. Its last line is: finish
set -u
: "${LIB:?}" "${abs_top_srcdir:?}" "${abs_top_builddir:?}"
directory=$(mktemp -d) || exit 99
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$directory"' EXIT
failed=0
fail() {
  echo "FAIL $*"
  failed=1
}
ok() { echo "ok $*"; }
skip() { echo "skipped part: $*"; }
# Programs without which there is nothing to test.
need() {
  local tool
  for tool; do
    command -v "$tool" >/dev/null || { echo "skipped: there is no $tool"; exit 77; }
  done
}
finish() {
  [ $failed = 0 ] || exit 1
  echo passed
  exit 0
}
