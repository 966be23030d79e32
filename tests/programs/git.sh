# SPDX-License-Identifier: Apache-2.0
# needs: git awk
# limit: 300
# compare
# subset
# may not mesh
# A clone of this project's own history where there is one, and a repository that is made here.
set -eu
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=tester GIT_AUTHOR_EMAIL=tester@example.org
export GIT_COMMITTER_NAME=tester GIT_COMMITTER_EMAIL=tester@example.org
export GIT_AUTHOR_DATE='2001-01-01T00:00:00Z' GIT_COMMITTER_DATE='2001-01-01T00:00:00Z'
git init -q -b main made
(
  cd made
  for round in $(seq $((SUBSET ? 6 : 25))); do
    for i in $(seq $((SUBSET ? 40 : 120))); do echo "file $i, round $((i % round))" >"file$i"; done
    awk -v n=$((SUBSET ? 5000 : 20000)) -v r="$round" 'BEGIN { for (i = 0; i < n; i++) print "line", i, (i % 100 == r ? "of round " r : "") }' >large
    git add .
    git commit -q -m "round $round"
  done
  git repack -q -a -d -f --depth=40 --window=40 --threads=2
)
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
    git blame HEAD -- "$(git ls-tree --name-only HEAD | tail -n 1)" 2>/dev/null | cksum
    git repack -q -a -d --threads=2
    git fsck --connectivity-only
  )
done
