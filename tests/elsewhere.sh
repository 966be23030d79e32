# SPDX-License-Identifier: Apache-2.0
# Sourced by tests that build the library once more, in another way, and run some of its tests: the scratch directory
# $directory, which goes at the end, and what they share.
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
unset LD_PRELOAD MAKEFLAGS MFLAGS MAKELEVEL CFLAGS CXXFLAGS CPPFLAGS LDFLAGS
failed=0

skip() {
  echo "skipped: $*"
  exit 77
}
fail() {
  echo "FAIL $*"
  failed=1
}
finish() {
  [ $failed = 0 ] || exit 1
  echo passed
}

# said COMMAND...: quiet, unless it fails.
said() {
  "$@" >"$directory/said" 2>&1 || {
    tail -n 40 "$directory/said"
    echo "FAIL $*"
    exit 1
  }
}

# build CONFIGURE-ARGUMENT...: configures and builds the library in a new directory, and goes there.
build() {
  [ -x "$abs_top_srcdir/configure" ] || skip "the source tree has no configure"
  mkdir "$directory/build"
  cd "$directory/build"
  said "$abs_top_srcdir/configure" --disable-static --disable-dependency-tracking "$@"
  sed -n 's/^  \(liburing\|libcap-ng\|criterion\|C compiler\) /&/p' "$directory/said"
  said make -j "$(nproc)" libmesh-uffd.la
}

# run_test PROGRAM COMMAND...: builds the program, runs the command.
run_test() {
  local program=$1 status=0
  shift
  said make "$program"
  timeout 150 "$@" >"$directory/said" 2>&1 || status=$?
  case $status in
  0 | 77) echo "ok $program: $(tail -n 1 "$directory/said")" ;;
  *)
    tail -n 40 "$directory/said"
    fail "$program, status $status"
    ;;
  esac
}

# unit_tests RUNNER: all of them.
unit_tests() {
  local test tests
  # shellcheck disable=SC2016
  tests=$(make -s --eval='print: ; @echo $(UNIT_TESTS)' print)
  # shellcheck disable=SC2086
  said make -j "$(nproc)" $tests
  # shellcheck disable=SC2086
  for test in $tests; do run_test "$test" $1 "./$test"; done
}
