# SPDX-License-Identifier: Apache-2.0
# needs: git awk
# limit: 300
# program: git
# compare
# subset
# shows: fsck finds nothing; objects, logs, blame, archive equal those without the library
# This project's own history where there is one, and a history that is made here: its thousands of small deltas, most of
# which another one replaces, are what git keeps long enough for passes.
set -eu
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=tester GIT_AUTHOR_EMAIL=tester@example.org
export GIT_COMMITTER_NAME=tester GIT_COMMITTER_EMAIL=tester@example.org
export GIT_AUTHOR_DATE='2001-01-01T00:00:00Z' GIT_COMMITTER_DATE='2001-01-01T00:00:00Z'
git init -q -b main made
awk -v commits=$((SUBSET ? 5000 : 12000)) 'BEGIN {
  state = 1
  for (i = 0; i < commits; i++) {
    state = (state * 1103515 + 12345) % 2147483648; f = int(state / 65536) % 150; version[f]++
    s = ""
    for (l = 0; l < 60; l++) s = s "line " l " of file " f ((l * 7 + version[f]) % 60 < 3 ? " changed in " version[f] : "") "\n"
    m = "change " i
    printf "commit refs/heads/main\ncommitter tester <tester@example.org> %d +0000\ndata %d\n%s\n", 1000000000 + i, length(m), m
    printf "M 100644 inline dir%d/file%d\ndata %d\n%s\n", f % 9, f, length(s), s
  } }' | git -C made fast-import --quiet
git -C made repack -q -a -d -f --depth=30 --window=30 --threads=2
git -C made reset -q --hard
sources=(made)
if git -C "$abs_top_srcdir" -c safe.directory='*' rev-parse --git-dir >/dev/null 2>&1; then
  git -c safe.directory='*' clone -q --bare --no-local "$abs_top_srcdir" project 2>/dev/null && sources+=(project)
fi
for s in "${sources[@]}"; do
  git clone -q --bare --no-local "$s" "$s.clone" 2>/dev/null
  (
    cd "$s.clone"
    git gc --quiet --aggressive --prune=now
    git fsck --full --strict
    git rev-list --objects --all | sort | cksum
    git cat-file --batch-all-objects --batch-check | sort | cksum
    git log -p --stat --all --topo-order | cksum
    git archive HEAD | cksum
    git grep -c e HEAD | cksum
    git blame HEAD -- "$(git ls-tree -r --name-only HEAD | tail -n 1)" 2>/dev/null | cksum
    git repack -q -a -d --threads=2
    git fsck --connectivity-only
  )
done
