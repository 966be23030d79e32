#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What programs, limits and sandboxes do to the library behind its back: runs the cases of the hostile program under LIB
# while meshing is forced all the time. HOSTILE names the program, else it is looked for here, in the build tree and
# beside the script. Prints `ok name`, `skipped name: why` or `FAIL name: why` for each case. HOSTILE_ONLY=pattern (a
# shell pattern) picks cases; MESH_UFFD_TEST_LONG=1 takes longer and tries more errors.
LIB=${LIB:-}
if [ -z "$LIB" ] || [ ! -f "$LIB" ]; then
  echo "skipped: LIB does not name the library"
  exit 77
fi

here=$(dirname "$0")
program=${HOSTILE:-./hostile}
for try in "${abs_top_builddir:-.}/tests/hostile" "$here/hostile"; do
  [ -x "$program" ] || program=$try
done
[ -x "$program" ] || { echo "FAIL: there is no hostile program"; exit 1; }
table=${abs_top_srcdir:-$here/..}/src/sys.h
[ -r "$table" ] || { echo "FAIL: there is no $table"; exit 1; }

directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
# Where an unprivileged user can read them.
chmod 755 "$directory"
cp "$LIB" "$directory/library.so" && cp "$program" "$directory/hostile" && chmod 755 "$directory"/* || exit 1

long=0
[ "${MESH_UFFD_TEST_LONG:-0}" = 0 ] || long=1
limit=
command -v timeout >/dev/null && limit="timeout -s KILL $((150 * ${MESH_UFFD_TEST_SLOW:-1}))"
failed=0
count=0    # jobs of this batch
started="" # their names

# start NAME [VARIABLE=VALUE | COMMAND ARGUMENT]... hostile CASE [ARGUMENT]...: what stands before `hostile` is given to
# env. Runs beside the others of the batch.
start() {
  name=$1
  shift
  # shellcheck disable=SC2254 # a pattern it is
  case $name in
    ${HOSTILE_ONLY:-*}) ;;
    *) return ;;
  esac
  before=""
  while [ "$1" != hostile ]; do
    before="$before $1"
    shift
  done
  shift
  (
    # shellcheck disable=SC3045 # where it is unknown, cores may be written
    ulimit -c 0 2>/dev/null
    # shellcheck disable=SC2086 # words are wanted
    $limit env MESH_UFFD_TEST_EAGER=1 $before env LD_PRELOAD="$directory/library.so" "$directory/hostile" "$@" \
      >"$directory/$name.out" 2>&1
    echo $? >"$directory/$name.status"
  ) 2>/dev/null &
  started="$started $name"
  count=$((count + 1))
  [ $count -lt "${batch:-4}" ] || finish
}

problem() {
  echo "FAIL $1: $2"
  sed 's/^/    /' "$directory/$1.out"
  failed=1
}

report() {
  status=$(cat "$directory/$1.status")
  case $status in
    0) if [ -s "$directory/$1.out" ]; then problem "$1" "it is not silent"; else echo "ok $1"; fi ;;
    77) echo "skipped $1: $(cat "$directory/$1.out")" ;;
    142 | 137) problem "$1" "it hangs" ;;
    1) problem "$1" "data or results are wrong" ;;
    *) problem "$1" "status $status" ;;
  esac
}

finish() {
  wait
  for name in $started; do report "$name"; done
  started=""
  count=0
}

# The errors of a batch of jobs named NAME@..., in one line.
finish_together() {
  [ $count -gt 0 ] || return
  wait
  bad=""
  for name in $started; do
    [ "$(cat "$directory/$name.status")" = 0 ] && [ ! -s "$directory/$name.out" ] || bad="$bad $name"
  done
  if [ -z "$bad" ]; then echo "ok $1"; else for name in $bad; do report "$name"; done; fi
  started=""
  count=0
}

# ---- the program's own doings ----
start late hostile late
start forks hostile forks
start threads hostile threads
start mlockall-late hostile mlockall late
start mlockall hostile mlockall
start mlock hostile mlock
start dup2 hostile dup2
start numbers hostile numbers
start numbers-unmeshed MESH_UFFD_MESH=0 hostile numbers
start close-range hostile close-range
start close-loop hostile close-loop
start exec hostile exec
start mprotect hostile mprotect
start dontfork hostile dontfork
start dontneed hostile dontneed
start credentials hostile credentials
start user-namespace hostile user-namespace
start filter hostile filter
start many-threads hostile many-threads
start realtime hostile realtime
start nested hostile nested
start forking-threads hostile forking-threads
start stopped hostile stopped
start profiler hostile profiler

# ---- tiers ----
for tier in 1 2 3 4; do start "tier-$tier" "MESH_UFFD_TEST_TIER=$tier" hostile worker; done
start tier-2-late MESH_UFFD_TEST_TIER=2 hostile late
start tier-2-forks MESH_UFFD_TEST_TIER=2 hostile forks
start no-ring MESH_UFFD_RING=0 hostile worker
start slow-pause MESH_UFFD_PAUSE_US=100000 hostile worker

# ---- limits ----
mb=1048576
start as-256 hostile limit as $((256 * mb)) exhaust $((256 * mb))
start as-1024 hostile limit as $((1024 * mb)) exhaust $((1024 * mb))
start data-128 hostile limit data $((128 * mb)) exhaust $((128 * mb))
start fsize-0 hostile limit fsize 0 worker
start memlock-0 hostile limit memlock 0 worker
finish
for n in 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
  batch=99 start "nofile@$n" hostile nofile "$n"
done
finish_together nofile

# ---- another user ----
if [ "$(id -u)" != 0 ]; then
  echo "skipped unprivileged, nproc: not root, so every case is unprivileged"
elif ! setpriv --reuid=65534 --regid=65534 --clear-groups "$directory/hostile" worker 1 100 2>"$directory/why"; then
  echo "skipped unprivileged, nproc: $(cat "$directory/why")"
else
  other="setpriv --reuid=65534 --regid=65534 --clear-groups"
  # shellcheck disable=SC2086 # words are wanted
  {
    start unprivileged $other hostile worker
    start unprivileged-mlockall $other hostile mlockall
    start unprivileged-memlock $other hostile limit memlock 65536 mlockall
    for n in 1 2 3; do start "nproc-$n" $other hostile limit nproc $n worker; done
  }
fi

# ---- places where something lacks ----
cat >"$directory/without" <<'END'
#!/bin/sh
# without DIRECTORY... -- COMMAND...
set -e
while [ "$1" != -- ]; do mount -t tmpfs none "$1"; shift; done
shift
exec "$@"
END
# A root that has what the program needs and nothing else, neither /proc nor /dev.
cat >"$directory/in-chroot" <<'END'
#!/bin/sh
set -e
root=$1
shift
mkdir -p "$root"
for file in "$(command -v env)" $(ldd "$(command -v env)" "$ROOT_PROGRAM" | grep -o '/[^ :)]*' | sort -u) "$ROOT_PROGRAM" "$ROOT_LIBRARY"; do
  mkdir -p "$root$(dirname "$file")"
  cp "$file" "$root$file"
done
exec chroot "$root" "$@"
END
chmod 755 "$directory/without" "$directory/in-chroot"
start no-new-privileges setpriv --no-new-privs hostile worker
if unshare -U -r true 2>"$directory/why"; then
  start in-user-namespace unshare -U -r hostile worker
else
  echo "skipped in-user-namespace: $(tail -n 1 "$directory/why")"
fi
if [ "$(id -u)" = 0 ] && unshare -m true 2>"$directory/why"; then
  start no-proc unshare -m "$directory/without" /proc -- hostile worker
  start no-dev unshare -m "$directory/without" /dev -- hostile worker
  start no-proc-no-dev unshare -m "$directory/without" /proc /dev -- hostile worker
  start no-proc-forks unshare -m "$directory/without" /proc -- hostile forks
  start chroot ROOT_PROGRAM="$directory/hostile" ROOT_LIBRARY="$directory/library.so" "$directory/in-chroot" "$directory/root" hostile worker
else
  echo "skipped no-proc, no-dev, chroot: no mount namespace: $(id -un) $(tail -n 1 "$directory/why" 2>/dev/null)"
fi
finish
# Alone: the machine's other processes are not short of mappings, but slow meanwhile.
start mappings hostile mappings
finish

# ---- sandboxes: errno values are Linux's, EPERM and ENOSYS ----
for call in userfaultfd memfd_create process_madvise io_uring_setup close_range mremap membarrier madvise; do
  start "seccomp-$call-EPERM" hostile seccomp $call 1 worker
  start "seccomp-$call-ENOSYS" hostile seccomp $call 38 worker
done
for call in all userfaultfd process_madvise mremap membarrier; do start "late-seccomp-$call" hostile late-seccomp $call 1; done
start seccomp-kills hostile killed worker
for n in 1 38; do start "seccomp-all-$n" hostile seccomp all $n worker; done
finish
finish

# ---- system calls that fail ----

# What a call fails with here: ENOMEM, EMFILE, EIO, ENOSPC, EPERM.
error_of() {
  case $1 in
    mmap | munmap | mprotect | madvise | mremap | ioctl | UFFDIO_*) echo 12 ;;
    openat | memfd_create | userfaultfd | USERFAULTFD_* | eventfd2 | pidfd_open) echo 24 ;;
    clone3) echo 11 ;;
    close | read | pread64 | write) echo 5 ;;
    ftruncate | fallocate) echo 28 ;;
    *) echo 1 ;;
  esac
}

names=$(sed -n '/define MU_SYS_LIST/,/clang-format on/s/X(\([a-zA-Z0-9_]*\)[,)]/\
@\1\
/gp' "$table" | sed -n 's/^@//p')
[ -n "$names" ] || { echo "FAIL: no system calls in $table"; exit 1; }
for call in $names; do
  errors=$(error_of "$call")
  [ $long = 0 ] || errors="1 4 11 12 22 38"
  # Without memory from the start no program starts.
  case $call in
    mmap | mprotect) always=8- ;;
    *) always=0- ;;
  esac
  for error in $errors; do
    for when in 0 1 2 5 8 9 10 3-40 $always; do
      batch=99 start "fail-$call@$when:$error" "MESH_UFFD_TEST_FAIL=$call:$when:$error" hostile worker 40 8000
    done
    finish_together "fail-$call"
  done
done

[ $failed = 0 ] && echo passed
exit $failed
