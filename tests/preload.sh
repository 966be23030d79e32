#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a test program with the built library preloaded: tests/preload.sh PROGRAM [ARGUMENT...], LIB in the environment.
set -eu
hard_error() {
  echo "$0: $*" >&2
  exit 99
}

[ -r "${LIB:?}" ] || hard_error "$LIB is not built"
# A wrapper script would have the library preloaded into the shell that runs it too.
[ "$(head -c 4 "$1" | tail -c 3)" = ELF ] || hard_error "$1 is not a program"
# The dynamic linker only warns when it cannot preload.
case $(LD_PRELOAD=$LIB true 2>&1) in
*'cannot be preloaded'*) hard_error "$LIB cannot be preloaded" ;;
esac

exec env LD_PRELOAD="$LIB" "$@"
