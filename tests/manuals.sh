#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Man pages and completions: well-formed, and true to the command's help, the options table and the header. The example of
# mesh_uffd.3 is built.
. "${abs_top_srcdir:?}/tests/begin.sh"
command=$abs_top_builddir/cmd/mesh-uffd
cd "$abs_top_srcdir" || exit 99

# ---- man pages ----
for page in man/mesh-uffd.1 man/libmesh-uffd.7 man/mesh_uffd.3; do
  checked=''
  if command -v mandoc >/dev/null; then
    mandoc -Tlint -W warning "$page" >"$directory/said" || fail "$page: $(cat "$directory/said")"
    checked=mandoc
  fi
  if command -v groff >/dev/null; then
    groff -man -Tutf8 -ww "$page" 2>"$directory/said" >/dev/null
    [ ! -s "$directory/said" ] || fail "$page: $(cat "$directory/said")"
    checked+=" groff"
  fi
  if [ -n "$checked" ]; then ok "$page, by $checked"; else skip "$page: there is neither mandoc nor groff"; fi
done
plain() { sed 's/\\-/-/g' "$1"; }

for name in run doctor stat top map record; do
  for option in $("$command" help "$name" | grep -oE -e '--[a-z-]+' | sort -u); do
    [ "$option" != --help ] || continue
    plain man/mesh-uffd.1 | grep -q -e "$option" || fail "man/mesh-uffd.1 does not have $option"
    for file in completions/mesh-uffd.bash completions/_mesh-uffd; do
      grep -q -e "$option" "$file" || fail "$file does not have $option"
    done
    grep -q -e "-l ${option#--}" completions/mesh-uffd.fish || fail "completions/mesh-uffd.fish does not have $option"
  done
done
for option in $(plain man/mesh-uffd.1 | grep -oE -e '--[a-z-]+' | sort -u); do
  for name in run doctor stat top map record; do "$command" help "$name"; done | grep -q -e "$option" ||
    fail "man/mesh-uffd.1 has $option, which no command has"
done
ok "options of the command"

# {"NAME", &value, low, high} against NAME (low to high; ...
while IFS='|' read -r name low high; do
  case $name in MESH_UFFD_TEST_*) continue ;; esac
  range="$low to $high"
  [ "$low$high" != 01 ] || range='0, 1'
  grep -qF -e ".BR $name \" ($range; " man/libmesh-uffd.7 || fail "man/libmesh-uffd.7 must have $name ($range"
done < <(sed -n 's/^    {"\([A-Z_]*\)", &mu_options\.[a-z_]*, \([0-9]*\), \([0-9]*\)},$/\1|\2|\3/p' src/options.c)
ok "variables of the library"

# Each option has a flag, of the same range, but for those for tests. X(ID, "flag", kind, "NAME", without, low, high).
sed -n '/define LIBRARY_VARIABLES/,/^$/s/^  X([A-Z_]*, "\([a-z-]*\)", \([a-z_]*\), "\([A-Z_]*\)", .*, \([0-9]*\), \([0-9]*\)).*/\3 \4 \5 \1 \2/p' cmd/options.h >"$directory/flags"
while IFS='|' read -r _ name _; do
  name=$(tr -d '` ' <<<"$name")
  case $name in MESH_UFFD_TEST_* | '') continue ;; esac
  read -r _ low high flag kind < <(grep "^$name " "$directory/flags") || { fail "mesh-uffd run has no flag for $name"; continue; }
  limits=$(sed -n "s/^    {\"$name\", &mu_options\.[a-z_]*, \([0-9]*\), \([0-9]*\)},$/\1 \2/p" src/options.c)
  case $kind in
  no_argument) ;; # sets what is not the default
  *) [ "${limits:-0 0}" = "$low $high" ] || fail "--$flag takes $low to $high, $name $limits" ;;
  esac
done < <(grep -E '^\| `(MALLOCSTATS|MESH_UFFD_[A-Z_]*)` \|' README.md)
[ "$(wc -l <"$directory/flags")" -ge 14 ] || fail "cmd/options.h: $(wc -l <"$directory/flags") flags"
ok "flags for the options"

for function in $(grep -oE 'mesh_uffd_[a-z_]+\(' include/mesh-uffd.h | tr -d '(' | sort -u); do
  [ "$(grep -c "$function" man/mesh_uffd.3)" -ge 2 ] || fail "man/mesh_uffd.3 does not describe $function"
done
sed -n '/^\.EX/,/^\.EE/p' man/mesh_uffd.3 | sed '/^\.E/d; s/\\en/\\n/; s/\\-/-/g' >"$directory/example.c"
if ! command -v cc >/dev/null; then
  skip "the example of mesh_uffd.3: no compiler here"
elif cc -Wall -Werror -Iinclude "$directory/example.c" -o "$directory/example" "$LIB" &&
  LD_LIBRARY_PATH=$(dirname "$LIB") "$directory/example" | grep -q 'live bytes$'; then
  ok "the example of mesh_uffd.3"
else
  fail "the example of mesh_uffd.3"
fi

# ---- completions ----
export PATH=$abs_top_builddir/cmd:$PATH
# complete_bash WORD...: what bash would offer for the last word.
complete_bash() {
  bash --norc -c 'source completions/mesh-uffd.bash; COMP_WORDS=(mesh-uffd "$@"); COMP_CWORD=$#; _mesh_uffd; printf "%s " "${COMPREPLY[@]}"' bash "$@"
}
offers() {
  local wanted=$1 got
  shift
  got=$(complete_bash "$@" 2>&1)
  if [ "$got" = "$wanted" ]; then ok "bash: mesh-uffd $*"; else fail "bash: mesh-uffd $*: '$got' instead of '$wanted'"; fi
}
offers 'record ' rec
offers 'run record ' r
offers '--json ' stat --j
offers '--compare --cpu-percent --check ' record --c
offers '--count ' top --c
offers ' ' run --cpu-percent 1
offers 'map ' help m
offers "$abs_top_srcdir/README.md " map -o "$abs_top_srcdir/READM"
got=$(complete_bash run --stats -- tru)
case " $got " in *' true '*) ok "bash: programs" ;; *) fail "bash: programs: '$got'" ;; esac
got=$(complete_bash run ls "$abs_top_srcdir/READM")
[ "$got" = "$abs_top_srcdir/README.md " ] || fail "bash: a program's files: '$got'"
if [ -r /usr/share/bash-completion/bash_completion ]; then
  got=$(bash --norc -c 'source /usr/share/bash-completion/bash_completion; source completions/mesh-uffd.bash
    COMP_WORDS=(mesh-uffd run -- kill -KIL); COMP_CWORD=4; COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
    _mesh_uffd; printf "%s " "${COMPREPLY[@]}"' 2>&1)
  case $got in *KILL*) ok "bash: the program's own completion" ;; *) fail "bash: the program's own completion: '$got'" ;; esac
else
  skip "bash: the program's own completion: there is no bash-completion"
fi

if command -v fish >/dev/null; then
  HOME=$directory fish --no-config -c 'source completions/mesh-uffd.fish; complete -C "mesh-uffd rec"; complete -C "mesh-uffd stat --op"; complete -C "mesh-uffd map -o READM"' \
    >"$directory/said" 2>&1
  if grep -q '^record' "$directory/said" && grep -q '^--openmetrics' "$directory/said" && grep -q 'README.md' "$directory/said"; then
    ok fish
  else
    fail "fish: $(cat "$directory/said")"
  fi
else
  skip "fish: not installed"
fi
if command -v zsh >/dev/null; then
  cat >"$directory/ask" <<'END'
zmodload zsh/zpty || exit 1
zpty shell zsh -f -i
zpty -w shell "PROMPT=; fpath=($PWD/completions \$fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' complete-word; cd $PWD; print READ''Y"
zpty -r shell line '*READY*'
# It may not be reading keys yet: what is typed until then is not completed.
ask() {
  repeat 50; do
    zpty -n -w shell $'\x15'"$1"$'\tDONE'
    zpty -r shell line '*DONE*'
    [[ $line != *$2* ]] || break
    sleep 0.1
  done
  print -r -- "$line"
}
ask 'mesh-uffd rec' record
ask 'mesh-uffd stat --op' openmetrics
zpty -d shell
END
  HOME=$directory TERM=dumb timeout 30 zsh -f "$directory/ask" >"$directory/said" 2>&1
  if grep -q 'mesh-uffd record' "$directory/said" && grep -q openmetrics "$directory/said"; then
    ok zsh
  else
    fail "zsh: $(cat -v "$directory/said")"
  fi
else
  skip "zsh: not installed"
fi

finish
