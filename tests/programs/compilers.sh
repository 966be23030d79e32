# SPDX-License-Identifier: Apache-2.0
# needs: gcc g++
# limit: 600
# program: cc1|cc1plus|as|collect2|ld.*|clang.*
# shows: the assembly of this project's sources, by gcc and by clang, equals that without the library
# compare
# subset
# The project's own sources: what comes out must be what comes out without the library.
set -eu
compilers=(gcc)
! command -v clang >/dev/null || compilers+=(clang)
# Without those that need what configure found.
mapfile -t sources < <(grep -L -E 'MU_[A-Z_]*(SONAME|DIR)\b' "$abs_top_srcdir"/src/*.c "$abs_top_srcdir"/uffd/*.c)
[ -z "$SUBSET" ] || sources=("$abs_top_srcdir"/src/{pass,arena}.c)
for cc in "${compilers[@]}"; do
  for source in "${sources[@]}"; do
    name=$(basename "$source" .c)
    $cc -std=gnu17 -D_GNU_SOURCE= -O3 -g -I"$abs_top_srcdir" -I"$abs_top_srcdir/include" -S "$source" -o "$name.s"
    cksum <"$name.s"
  done
done
cat >program.cc <<'CC'
#include <algorithm>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <unordered_map>
#include <vector>
int main() {
  std::map<std::string, std::vector<int>> m;
  std::unordered_map<int, std::string> u;
  for (int i = 0; i < 50000; i++) m[std::to_string(i * 7919 % 3000)].push_back(i), u[i % 999] += 'x';
  long sum = 0;
  for (auto const &[k, v] : m)
    if (std::regex_match(k, std::regex("1.*"))) sum += v.back();
  std::cout << m.size() << ' ' << sum << ' ' << u[5].size() << '\n';
}
CC
for cc in "${compilers[@]}"; do
  cxx=${cc/gcc/g++}
  cxx=${cxx/clang/clang++}
  command -v "$cxx" >/dev/null || continue
  "$cxx" -std=c++17 -O2 -g program.cc -o program
  ./program
done
