#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# tools/mesh_uffd_gdb.py on a core file of a meshed heap: figures, spans, and the story of pointers.
set -u
: "${LIB:?}" "${abs_top_srcdir:?}" "${abs_top_builddir:?}"
for tool in gdb python3; do
  command -v $tool >/dev/null || { echo "skipped: there is no $tool"; exit 77; }
done
if ! gdb -nx -batch -ex 'python print(1)' 2>/dev/null | grep -q 1; then
  echo "skipped: this gdb has no python"
  exit 77
fi
if ! readelf -SW "$LIB" | grep -q debug_info; then
  echo "skipped: the library has no debugging symbols"
  exit 77
fi
directory=$(mktemp -d) || exit 99
trap 'rm -rf "$directory"' EXIT
sparse=$abs_top_builddir/tests/sparse
command=$abs_top_builddir/cmd/mesh-uffd
[ ! -x "$abs_top_builddir/tests/.libs/sparse" ] || sparse=$abs_top_builddir/tests/.libs/sparse
unset LD_PRELOAD
cd "$directory" || exit 99
ulimit -c unlimited 2>/dev/null
(LD_PRELOAD=$LIB exec "$sparse" 600 stay >sparse.out 2>&1) &
process=$!
meshed=0
for _ in $(seq 300); do
  "$command" stat -j "$process" >stat 2>/dev/null
  if grep -Eq '"meshes":[1-9][0-9]{2}' stat; then meshed=1; break; fi
  sleep 0.1
done
"$command" stat -j "$process" >stat
# The heap of the live process; somebody may be changing it at that moment.
for _ in 1 2 3 4 5; do
  timeout 60 gdb -nx -batch -iex 'set auto-load off' -iex 'set debuginfod enabled off' -p "$process" \
    -ex "source $abs_top_srcdir/tools/mesh_uffd_gdb.py" -ex 'mesh-uffd validate' >validated 2>&1
  if grep -q '^the heap: valid$' validated; then break; fi
done
kill -ABRT "$process"
wait "$process" 2>/dev/null
core=$(find . -maxdepth 1 -name 'core*' | head -n 1)
if [ -z "$core" ]; then
  echo "skipped: no core file here: kernel.core_pattern is '$(cat /proc/sys/kernel/core_pattern)', ulimit -c $(ulimit -c)"
  exit 77
fi

cat >ask.py <<'END'
import gdb
objects = gdb.parse_and_eval("object")
live = [p for p in (int(objects[i * 200]) for i in range(1000)) if p]  # what is meshed first is not known
for p in live:
    gdb.execute(f"mesh-uffd pointer {p}")
def is_readable(p):
    try:
        return any(bytes(gdb.selected_inferior().read_memory(p, 16)))
    except gdb.MemoryError:
        return False
print(f"readable: {sum(map(is_readable, live))} of {len(live)} objects")
gdb.execute(f"mesh-uffd pointer {live[0] + 5}")
gdb.execute("mesh-uffd pointer 4096")
gdb.execute("mesh-uffd pointer (char *)mu_arena.base + 1")
END
timeout 120 gdb -nx -batch -iex 'set auto-load off' -iex 'set debuginfod enabled off' -ex "source $abs_top_srcdir/tools/mesh_uffd_gdb.py" \
  -ex 'mesh-uffd heap' -ex 'mesh-uffd spans 256' -ex 'source ask.py' "$sparse" "$core" >out 2>err
failed=0
shows() {
  if grep -Eq -e "$1" out; then
    echo "ok $2"
  else
    echo "FAIL $2: must show '$1'"
    failed=1
  fi
}
if grep -q '^the heap: valid$' validated; then
  echo "ok validate"
elif grep -qi 'ptrace: Operation not permitted\|could not attach' validated; then
  echo "skipped part: validate: no process may be attached to"
else
  echo "FAIL validate:"
  tail -n 5 validated
  failed=1
fi
shows '^heap at 0x[0-9a-f]+, ' heap
shows '^ +256 +[0-9]+ +[0-9]{5} ' "the class of 256 bytes"
shows '^ +0x[0-9a-f]+ +256 +(open|meshed)' spans
shows 'an object of 256 bytes at 0x' "a pointer"
shows ': byte 5 of an object of 256 bytes' "a pointer into an object"
shows '^it is live' "a live object"
shows '0x1000 is not in the heap' "a pointer of somebody else's"
# The contents of objects whose pages are clean pages of a mesh file, which the kernel leaves out unless it is told.
shows '^readable: ([0-9]+) of \1 objects' "contents"
if [ $meshed = 1 ]; then
  shows '^ +256 .* [1-9][0-9]*$' "meshed spans"
  shows 'its span shows unit [0-9]+ of mesh file [0-9]+, which [0-9]+ other spans show too' "who shares a page"
else
  echo "skipped part: meshed spans: nothing was meshed in this tier"
fi
# As many live slots as were shown from outside, but for what the program did in between.
inside=$(awk '$1 == 256 && NF == 6 { print $3; exit }' out)
outside=$(python3 -c 'import json; print([c["live_slots"] for c in json.load(open("stat"))["classes"] if c["size"] == 256][0])')
if [ -z "$inside" ] || [ $((inside - outside)) -gt 500 ] || [ $((outside - inside)) -gt 500 ]; then
  echo "FAIL gdb counts ${inside:-no} live slots, mesh-uffd stat $outside"
  failed=1
fi
grep -v warning err | grep -q 'Error\|Traceback' && failed=1
if [ $failed = 1 ]; then
  head -n 60 out
  tail -n 30 err
  exit 1
fi
echo passed
