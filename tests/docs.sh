#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs the commands of README.md and doc/guide.md, as they stand there, against the built tree: what is in a block that
# begins with ```sh. "sh if PROGRAM": where that is installed; "sh not run: WHY": not, and then it must be in the list
# below. One shell runs all blocks of a file, one after the other. Links to files and the pictures are checked, too.
. "${abs_top_srcdir:?}/tests/begin.sh"
need cc python3 pkg-config

# File, and first command of each block that is not run.
cat >"$directory/expected" <<'END'
README.md ./setup demo
README.md ./setup test
README.md cc -static program.c $(pkg-config --static --cflags --libs mesh-uffd) -o program
README.md ./setup test                      # installs packages, builds, make check
doc/guide.md gdb -ex 'source /usr/local/share/mesh-uffd/mesh_uffd_gdb.py' -ex 'mesh-uffd heap' -ex 'mesh-uffd pointer 0x7f0012345678' PROGRAM core
doc/guide.md make -C build bench BENCH_FLAGS=--quick
END

# blocks FILE: a script of what can be run; what is not goes to the list.
blocks() {
  awk -v file="$1" -v list="$directory/left_out" '
    /^```sh/ { inside = 1; first = 1; skip = $0 ~ /^```sh not run: ./; program = $2 == "if" ? $3 : "";
               if ($0 != "```sh" && !skip && program == "") { print "echo \"unknown kind of block\"; exit 1"; }
               if (!skip) printf "echo \"== %s:%d\"\n", file, NR;
               if (program != "") printf "if ! command -v %s >/dev/null; then echo skipped part: there is no %s; else\n", program, program;
               next }
    /^```/ && inside { inside = 0; if (program != "") print "fi"; next }
    inside && skip { if (first) print file " " $0 >>list; first = 0; next }
    inside { print }' "$abs_top_srcdir/$1"
}

# As installed: the header, and pkg-config that finds both.
mkdir -p "$directory/tree" "$directory/home" "$directory/pkgconfig" "$directory/lib"
version=$("$abs_top_builddir/cmd/mesh-uffd" --version | sed -n '1s/.* //p')
ln -s "$LIB" "$directory/lib/libmesh-uffd.so"
ln -s "$LIB" "$directory/lib/libmesh-uffd.so.0"
printf 'Name: mesh-uffd\nDescription: built tree\nVersion: %s\nCflags: -I%s\nLibs: -L%s -lmesh-uffd\n' "$version" \
  "$abs_top_srcdir/include" "$directory/lib" >"$directory/pkgconfig/mesh-uffd.pc"
for name in examples bench include doc setup README.md; do ln -s "$abs_top_srcdir/$name" "$directory/tree/$name"; done

: >"$directory/left_out"
for file in README.md doc/guide.md; do
  blocks $file >"$directory/script"
  (
    cd "$directory/tree" || exit 99
    unset LD_PRELOAD
    PATH=$abs_top_builddir/cmd:$PATH HOME=$directory/home LD_LIBRARY_PATH=$directory/lib \
      PKG_CONFIG_PATH=$directory/pkgconfig timeout 240 bash -eu -o pipefail "$directory/script" >"$directory/out" 2>&1
  )
  status=$?
  grep '^skipped part' "$directory/out"
  if [ $status = 0 ]; then
    echo "ok $file: $(grep -c '^== ' "$directory/out") blocks"
  else
    fail "$file: status $status: $(tail -n 30 "$directory/out")"
  fi
  # The example is meshed and its sessions are right, wherever it ran.
  if grep -q 'is damaged' "$directory/out"; then fail "$file: a session is damaged"; fi
done
if ! diff "$directory/expected" "$directory/left_out"; then fail "other blocks than those listed are not run"; fi

# What the guide says of its example is so.
cd "$directory/tree" || exit 99
for picture in run.svg heap.svg; do
  python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' $picture || fail "$picture is no picture"
done

# Links within the repository, and pictures as they are drawn.
cd "$abs_top_srcdir" || exit 99
for file in README.md doc/*.md; do
  for link in $(grep -oE '\]\([^)#]+' "$file" | cut -c 3- | grep -v '^https:'); do
    [ -e "$(dirname "$file")/$link" ] || fail "$file: there is no $link"
  done
done
for link in $(grep -oE '\]\((\.\./README\.md)?#[^)]+' doc/guide.md | sed 's/.*#//' | sort -u); do
  cat README.md doc/guide.md | sed -n 's/^#* //p' | tr 'A-Z ' 'a-z-' | tr -d ',' | grep -qx -e "$link" ||
    fail "doc/guide.md: there is no heading $link"
done
doc/draw --check || failed=1

finish
