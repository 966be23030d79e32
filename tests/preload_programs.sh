#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs real programs with and without LD_PRELOAD=$LIB: standard output, standard error and exit status must be the same.
# MESH_UFFD_TEST_LONG=1 makes the inputs ten times as large. TEST_ONLY=name runs the parts whose names contain it.
LIB=${LIB:-}
if [ -z "$LIB" ]; then
  echo "skipped: LIB does not name the library"
  exit 77
fi
case $LIB in
  */*) LIB=$(cd "$(dirname "$LIB")" && pwd)/$(basename "$LIB") ;;
esac
[ -f "$LIB" ] || { echo "FAIL: there is no $LIB"; exit 1; }

SCALE=1
case ${MESH_UFFD_TEST_LONG:-0} in '' | 0) ;; *) SCALE=10 ;; esac
LIMIT=$((120 * SCALE))
LC_ALL=C TZ=UTC PYTHONHASHSEED=0 PERL_HASH_SEED=0
export SCALE LC_ALL TZ PYTHONHASHSEED PERL_HASH_SEED
GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null GIT_CONFIG_NOSYSTEM=1
GIT_AUTHOR_NAME=tester GIT_AUTHOR_EMAIL=tester@example.org GIT_AUTHOR_DATE='2001-01-01T00:00:00Z'
GIT_COMMITTER_NAME=tester GIT_COMMITTER_EMAIL=tester@example.org GIT_COMMITTER_DATE='2001-01-01T00:00:00Z'
export GIT_CONFIG_GLOBAL GIT_CONFIG_SYSTEM GIT_CONFIG_NOSYSTEM GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_AUTHOR_DATE
export GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL GIT_COMMITTER_DATE
unset LD_PRELOAD PYTHONMALLOC MALLOC_ARENA_MAX GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE

directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
failed=0
ran=0
skips=

have() { command -v "$1" >/dev/null 2>&1; }

skip() {
  echo "skipped part: $1: $2"
  skips="$skips $1"
}

# same <name> <needs> : the script on standard input, run twice by sh, each time in a directory of its own that is
# called the same, so that no path in an output differs.
same() {
  name=$1 needs=$2
  cat >"$directory/script"
  case $name in *"${TEST_ONLY:-}"*) ;; *) return ;; esac
  for program in $needs; do
    have "$program" || { skip "$name" "no $program"; return; }
  done
  for how in without with; do
    rm -rf "$directory/work"
    mkdir "$directory/work"
    preload=
    [ $how = with ] && preload=$LIB
    (
      cd "$directory/work" || exit 1
      if have timeout; then
        exec timeout -k 5 $LIMIT env ${preload:+"LD_PRELOAD=$preload"} sh "$directory/script"
      else
        exec env ${preload:+"LD_PRELOAD=$preload"} sh "$directory/script"
      fi
    ) >"$directory/$how.out" 2>"$directory/$how.err" </dev/null
    echo "exit status $?" >>"$directory/$how.out"
  done
  ran=$((ran + 1))
  if [ ! -s "$directory/without.out" ] || ! grep -q '^exit status 0$' "$directory/without.out"; then
    # Not the library's fault: the part itself does not work here.
    skip "$name" "fails without the library: $(tail -n 1 "$directory/without.err") $(tail -n 1 "$directory/without.out")"
    ran=$((ran - 1))
  elif cmp -s "$directory/without.out" "$directory/with.out" && cmp -s "$directory/without.err" "$directory/with.err"; then
    echo "ok $name"
  else
    echo "FAIL $name: differs from its run without the library"
    diff "$directory/without.out" "$directory/with.out" | head -n 10 | sed 's/^/    out: /'
    diff "$directory/without.err" "$directory/with.err" | head -n 10 | sed 's/^/    err: /'
    failed=1
  fi
}

# Before all: the library is really there.
if [ -r /proc/self/maps ]; then
  if ! LD_PRELOAD=$LIB grep -q -F "$(basename "$(readlink -f "$LIB")")" /proc/self/maps; then
    echo "FAIL: $LIB is not loaded by LD_PRELOAD"
    exit 1
  fi
fi

same ls 'ls' <<'END'
directory=/usr/share/doc
[ -d $directory ] || directory=/usr
ls -lR $directory
END

same awk 'awk' <<'END'
awk -v n=$((60000 * SCALE)) 'BEGIN {
  srand(1)
  for (i = 0; i < n; i++) {
    key = "key" int(rand() * 20000)
    table[key] = substr(table[key] "," i, 1, 200 + i % 300)
    if (i % 3 == 0) delete table["key" int(rand() * 20000)]
  }
  for (key in table) { count++; sum += length(table[key]) }
  print count, sum
}'
END

same perl 'perl' <<'END'
perl -e '
use strict; use warnings;
my (%table, @list); my $state = 1;
sub next_number { $state = ($state * 1103515245 + 12345) % 2147483648; return int($state / 65536) }
for my $i (1 .. 60000 * $ENV{SCALE}) {
  my $key = next_number() % 20000;
  push @{$table{$key}}, { number => $i, text => "x" x ($i % 200) };
  delete $table{next_number() % 20000} if $i % 2;
  push @list, join(":", $i, scalar reverse "abc$i") ; splice(@list, 0, 500) if @list > 2000;
}
my $sum = 0;
for my $key (sort { $a <=> $b } keys %table) { $sum += $_->{number} + length $_->{text} for @{$table{$key}} }
print scalar(keys %table), " $sum ", scalar(@list), " $list[0]\n";
my $pid = fork; die unless defined $pid;
if (!$pid) { %table = (); print "child ", scalar(@list), "\n"; exit 0 }
waitpid $pid, 0; print "status $?\n"; print `echo from a shell`;
'
END

same python3 'python3' <<'END'
PYTHONMALLOC=malloc
export PYTHONMALLOC
cat >script.py <<'PY'
import gc, hashlib, json, os, random, re, subprocess, sys, threading
scale = int(os.environ["SCALE"])
random.seed(1)

class Node:
    def __init__(self, value, left=None, right=None):
        self.value, self.left, self.right = value, left, right

def tree(depth):
    return Node(depth) if depth == 0 else Node(depth, tree(depth - 1), tree(depth - 1))

def total(node):
    return node.value + (total(node.left) + total(node.right) if node.left else 0)

results = {}
def work(n):
    generator = random.Random(n)
    table, digest = {}, hashlib.sha256()
    for i in range(8000 * scale):
        key = generator.randrange(5000)
        table.setdefault(key, []).append("v" * generator.randrange(100) + str(i))
        if i % 3 == 0:
            table.pop(generator.randrange(5000), None)
    for key in sorted(table):
        digest.update(("%d %s" % (key, ",".join(table[key]))).encode())
    results[n] = digest.hexdigest()

threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
for t in threads: t.start()
trees = [tree(12) for _ in range(3)]
keep = [bytearray(random.randrange(1, 3000)) for _ in range(30000)]
keep = [b for b in keep if random.random() < 0.1]
print(sum(len(b) for b in keep), [total(t) for t in trees])
for n in range(4):
    code = "print(sum(len(str(i)) for i in range(%d)))" % (n * 1000)
    print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
pid = os.fork() if hasattr(os, "fork") else 0
if pid == 0:
    del keep[::2]
    gc.collect()
    os._exit(0 if total(trees[0]) == total(trees[1]) else 1)
print("child", os.waitpid(pid, 0)[1])
for t in threads: t.join()
for n in sorted(results): print(n, results[n])
text = json.dumps([{"n": i, "s": "x" * (i % 50)} for i in range(20000)])
print(hashlib.sha256(json.dumps(json.loads(text)).encode()).hexdigest(), len(re.findall(r'"n": \d*7\b', text)))
PY
python3 -W ignore script.py
END

same sqlite3 'sqlite3' <<'END'
sqlite3 test.db <<SQL
PRAGMA journal_mode = WAL;
CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 15000 * $SCALE)
  INSERT INTO t SELECT i, printf('row %d %s', i, hex(i * 7919)), (i * 7919) % 1000 FROM n;
CREATE INDEX t_b ON t (b, a);
DELETE FROM t WHERE id % 3 = 0;
UPDATE t SET a = a || ' changed' WHERE b < 300;
SELECT b, count(*), min(a), max(length(a)) FROM t GROUP BY b ORDER BY b;
SELECT count(*) FROM t x JOIN t y ON x.b = y.b AND x.id < y.id WHERE x.b < 20;
SELECT group_concat(a, '|') FROM (SELECT a FROM t ORDER BY a LIMIT 2000);
VACUUM;
PRAGMA integrity_check;
SQL
END

same git 'git' <<'END'
set -e
git init -q -b main repository 2>/dev/null
cd repository
for round in 1 2 3 4 5; do
  i=0
  while [ $i -lt $((60 * SCALE)) ]; do
    echo "file $i, round $((i % round))" >file$i
    i=$((i + 1))
  done
  awk -v n=8000 -v r=$round 'BEGIN { for (i = 0; i < n; i++) print "line", i, (i % 100 == r ? "of round " r : "") }' >large
  git add .
  git commit -q -m "round $round"
done
git checkout -q -b side HEAD~3
echo side >side-file
git add .
git commit -q -m side
git merge -q -m merge main
git gc --quiet --aggressive --prune=now
git fsck --full --strict
git rev-parse HEAD main
git log --stat --format='%H %s' | tail -n 40
git cat-file --batch-all-objects --batch-check | sort
git blame -s large | awk '{ print $1 }' | sort | uniq -c
git diff --stat HEAD~2
git grep -c 'round 2' | sort | head -n 20
git status --short
END

same gcc 'gcc' <<'END'
set -e
awk -v n=$((60 * SCALE)) 'BEGIN {
  print "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <math.h>"
  for (i = 0; i < n; i++)
    printf "int f%d(int a, int b) { int s = 0; for (int i = a; i < b; i++) s += i * %d ^ (s >> %d); return s; }\n", i, i + 3, i % 7 + 1
  print "int main(void) { int s = 0;"
  for (i = 0; i < n; i++) printf "  s ^= f%d(%d, %d);\n", i, i, i * 2
  print "  printf(\"%d\\n\", s); return 0; }"
}' >source.c
gcc -O2 -g -S source.c -o source.s
cksum source.s
gcc -O2 -pipe source.c -o program -lm
./program
END

same cc1plus 'g++' <<'END'
set -e
cat >source.cc <<'CC'
#include <algorithm>
#include <iostream>
#include <map>
#include <string>
#include <vector>
int main() {
  std::map<std::string, std::vector<int>> m;
  for (int i = 0; i < 50000; i++) m[std::to_string(i * 7919 % 3000)].push_back(i);
  long sum = 0;
  for (auto const &[k, v] : m)
    if (k[0] == '1') sum += v.back();
  std::cout << m.size() << ' ' << sum << '\n';
}
CC
g++ -std=c++17 -O1 source.cc -o program
./program
END

same sort 'sort awk cksum' <<'END'
set -e
awk -v n=$((100000 * SCALE)) 'BEGIN { srand(7); for (i = 0; i < n; i++) print int(rand() * 1000000), i, "text " rand() }' >large
sort --parallel=4 -S 4M large | cksum
sort --parallel=4 -n -k 1,1 -k 2,2 large | cksum
sort --parallel=4 -u -k 1,1n -S 1M large | cksum
sort large | uniq -c | sort -rn | head -n 5
END

same tar 'tar gzip find' <<'END'
set -e
mkdir tree
i=0
while [ $i -lt $((100 * SCALE)) ]; do
  mkdir -p tree/d$((i % 10))
  awk -v n=$((i * 10 + 1)) 'BEGIN { for (i = 0; i < n; i++) print "line", i * i }' >tree/d$((i % 10))/f$i
  i=$((i + 1))
done
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf tree.tar tree
gzip -9n <tree.tar >tree.tar.gz
cksum tree.tar tree.tar.gz
mkdir out
tar -xzf tree.tar.gz -C out
diff -r tree out/tree
tar -tzf tree.tar.gz | cksum
find out -type f | sort | xargs cksum | cksum
END

same xz 'xz zstd awk' <<'END'
set -e
awk -v n=$((60000 * SCALE)) 'BEGIN { for (i = 0; i < n; i++) print "line", i, i * 7919 % 1000 }' >large
xz -T2 -1 -k -c large | xz -dc | cksum
zstd -q -T2 -3 -c large | zstd -q -dc | cksum
END

same bash 'bash' <<'END'
bash -c '
declare -A table
for ((i = 0; i < 8000 * SCALE; i++)); do
  table[k$((i * 7919 % 1000))]+="$i,"
  list+=("item $i")
  ((i % 500 == 0)) && { sum=$(echo "${list[@]: -5}" | wc -c); total=$((total + sum)); list=("${list[@]: -100}"); }
done
for key in $(printf "%s\n" "${!table[@]}" | sort); do printf "%s %s\n" "$key" "${#table[$key]}"; done
echo "$total"
f() { (($1 == 0)) && { echo bottom; return; }; local copy="$1$2"; f $(($1 - 1)) "$copy"; }
f 200 ""
cat <(echo one) <(echo two) <(for i in 1 2 3; do (echo "subshell $i") & wait $!; done)
trap "echo trapped" USR1; kill -USR1 $$; echo end
'
END

same pipeline 'seq awk sed tr sort uniq head tail wc cut paste tee' <<'END'
seq 1 $((40000 * SCALE)) | awk '{ print $1 * 7919 % 10007, $1 }' | sed 's/7/seven/g' | tr 'a-z' 'A-Z' | sort -k 1,1 |
  tee copy | cut -d ' ' -f 1 | uniq -c | sort -rn -k 1,1 -k 2,2 | head -n 50 | paste - - | tail -n 20
wc copy
grep -c SEVEN copy
find . -name copy -print0 | xargs -0 wc -l
END

[ -n "$skips" ] && echo "skipped:$skips"
if [ $failed -ne 0 ]; then exit 1; fi
if [ $ran -eq 0 ]; then
  echo "skipped: nothing could be run"
  exit 77
fi
echo "passed: $ran programs"
