# SPDX-License-Identifier: Apache-2.0
# needs: stress-ng
# limit: 300
# program: stress-ng
# shows: what its stressors of memory wrote, which they check
# Its stressors of malloc, and of what works on memory beside it; each checks what it wrote.
set -eu
run() { stress-ng --quiet --verify --timeout 60 --temp-path "$PWD" "$@" || { echo "stress-ng $*" >&2; exit 1; }; }
run --malloc 2 --malloc-ops 40000 --malloc-bytes 64m
run --malloc 1 --malloc-ops 100 --malloc-bytes 64m --malloc-pthreads 4 --malloc-touch
run --malloc 1 --malloc-ops 3000 --malloc-bytes 8m --malloc-max 1000
run --fork 2 --fork-ops 300
run --vfork 1 --vfork-ops 100
run --clone 1 --clone-ops 100
run --madvise 1 --madvise-ops 100
run --mlock 1 --mlock-ops 1000
run --qsort 1 --qsort-ops 5
run --tree 1 --tree-ops 10
run --list 1 --list-ops 100
run --hsearch 1 --hsearch-ops 20
run --judy 1 --judy-ops 2
run --skiplist 1 --skiplist-ops 20
run --zlib 1 --zlib-ops 50
run --pthread 2 --pthread-ops 500
run --dynlib 1 --dynlib-ops 50
run --exec 1 --exec-ops 30
run --userfaultfd 1 --userfaultfd-ops 200
run --aio 1 --aio-ops 100
