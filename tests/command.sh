#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The command mesh-uffd: every sub-command, wrong arguments, processes that are not there, end while they are read, do
# not have the library, or belong to somebody else. LIB is the library, abs_top_builddir has cmd/mesh-uffd and
# tests/sparse; or COMMAND and SPARSE name them.
set -u
: "${LIB:?}"
command=${COMMAND:-${abs_top_builddir:?}/cmd/mesh-uffd}
sparse=${SPARSE:-${abs_top_builddir:?}/tests/sparse}
directory=$(mktemp -d) || exit 99
failed=0
processes=()
unset LD_PRELOAD MALLOCSTATS PYTHONMALLOC
for name in $(compgen -e MESH_UFFD_); do unset "$name"; done

# shellcheck disable=SC2317 # called by trap
clean_up() {
  for process in "${processes[@]}"; do kill -KILL "$process" 2>/dev/null; done
  wait 2>/dev/null
  rm -rf "$directory"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM

# Where another user can reach it, with the shape of a build tree.
chmod 755 "$directory"
mkdir "$directory/cmd" "$directory/.libs"
cp "$command" "$directory/cmd/mesh-uffd" && cp "$LIB" "$directory/.libs/libmesh-uffd.so" &&
  cp "$sparse" "$directory/sparse" || exit 99
command=$directory/cmd/mesh-uffd
out=$directory/out
err=$directory/err

fail() {
  echo "FAIL $*"
  sed 's/^/    out: /' "$out" | head -n 20
  sed 's/^/    err: /' "$err" | head -n 20
  failed=1
}
ok() { echo "ok $*"; }
skip() { echo "skipped part: $*"; }

# expect STATUS WHAT COMMAND...: runs it; its status must be one of STATUS (a|b), its output is in $out and $err.
expect() {
  local status=0 wanted=$1 what=$2
  shift 2
  timeout -s KILL 60 "$@" >"$out" 2>"$err" </dev/null || status=$?
  case "|$wanted|" in
  *"|$status|"*) return 0 ;;
  esac
  fail "$what: status $status, must be $wanted"
  return 1
}
# says PATTERN WHAT: standard error has it, and is not too long.
says() {
  if ! grep -Eq -e "$1" "$err"; then
    fail "$2: must say '$1'"
  elif [ "$(wc -l <"$err")" -gt 4 ]; then
    fail "$2: says too much"
  else
    ok "$2"
  fi
}
shows() { if grep -Eq -e "$1" "$out"; then ok "$2"; else fail "$2: must show '$1'"; fi; }

# start SECONDS [WORD]...: sparse in the background under the command, with its number in $pid when it has figures.
start() {
  local seconds=$1
  shift
  "$@" "$command" run -- "$directory/sparse" "$seconds" stay >"$directory/sparse.out" 2>&1 &
  pid=$!
  processes+=("$pid")
  for _ in $(seq 1200); do
    timeout 10 "$command" stat "$pid" >/dev/null 2>&1 && return
    sleep 0.05
  done
  "$command" stat "$pid" >"$out" 2>"$err"
  fail "process $pid has no figures within a minute"
  return 1
}

# ---- the command itself ----
expect 2 bare "$command" && cp "$err" "$directory/help"
expect 0 "--help" "$command" --help && if cmp -s "$out" "$directory/help"; then ok "without arguments"; else fail "without arguments: no help"; fi
expect 2 unknown "$command" frobnicate && says "'frobnicate' is not a command" "unknown command"
expect 2 unknown "$command" --frobnicate && says "'--frobnicate' is not an option" "unknown option"
expect 0 version "$command" --version && shows '^mesh-uffd [0-9]+\.[0-9]+\.[0-9]+$' version
expect 0 help "$command" --help && shows '^usage: ' help
for name in run doctor stat top map record; do
  expect 0 "help $name" "$command" help "$name" && cp "$out" "$directory/help"
  if expect 0 "$name --help" "$command" "$name" --help; then
    if ! cmp -s "$out" "$directory/help"; then
      fail "$name --help and help $name differ"
    elif [ "$(wc -L <"$out")" -gt 120 ]; then
      fail "$name --help is too wide"
    else
      shows "^usage: mesh-uffd $name " "$name --help"
    fi
  fi
  expect 2 "$name --frobnicate" "$command" "$name" --frobnicate && says "mesh-uffd $name --help" "$name, wrong option"
done
expect 2 "help frobnicate" "$command" help frobnicate && says 'is not a command' "help of nothing"

# ---- wrong arguments, processes that are none ----
sleep 0 &
dead=$!
wait "$dead"
for name in stat top map doctor; do
  flag=''
  [ $name != top ] || flag=--batch
  for bad in 0 -1 abc 12x '' 99999999999999999999; do
    expect 2 "$name '$bad'" "$command" "$name" $flag -- "$bad" && says 'is not the number of a process' "$name '$bad'"
  done
  expect 3 "$name of a dead process" "$command" "$name" $flag "$dead" && says 'there is no process' "$name of a dead process"
  expect 2 "$name of two" "$command" "$name" $flag 1 2 && says "$name --help" "$name of two processes"
done
sleep 60 &
stranger=$!
processes+=("$stranger")
for name in stat top map; do
  flag=''
  [ $name != top ] || flag=--batch
  expect 5 "$name of a stranger" "$command" $name $flag "$stranger" &&
    says 'does not run under mesh-uffd' "$name of a process without the library"
done
expect 1 "doctor of a stranger" "$command" doctor "$stranger" && shows 'mesh-uffd run -- .*sleep' "doctor of a process without the library"
for wrong in "stat --json --openmetrics 1" "stat --interval 0 1" "stat --interval x 1" "stat --count 0 1" "top -n 0 --batch" \
  "run --cpu-percent 0 true" "run --cpu-percent 101 true" "run --pause-us 19 true" "run --decay-ms -1 true" \
  "run --mappings x true" "run --check=3 true" "run --check= true" "run --deny" "run --stats=3 true" "run --profile=x true" "run --profile-signal 65 true" run "run --" record "record -o x.svg" "record -o x.txt true" \
  "record -o x.svg -i 0 true" map "map -o heap.gif 1" "stat"; do
  # shellcheck disable=SC2086 # words
  expect 2 "$wrong" "$command" $wrong && says "See 'mesh-uffd " "$wrong"
done

# ---- run ----
expect 7 "run's status" "$command" run sh -c 'exit 7' && ok "run gives the program's status"
# shellcheck disable=SC2016 # for the program
expect 0 "run's environment" "$command" run --no-mesh --cpu-percent 7 --decay-ms 20 --mappings 30 --pause-us 100 --no-ring --huge-pages 2 \
  --drop-caps --check --no-abort --deny make:gcc --profile --profile-file /dev/null --profile-signal 12 -q -- sh -c 'echo "$MESH_UFFD_PROFILE $MESH_UFFD_PROFILE_FILE $MESH_UFFD_PROFILE_SIGNAL $LD_PRELOAD $MESH_UFFD_MESH $MESH_UFFD_CPU_PERCENT $MESH_UFFD_DECAY_MS $MESH_UFFD_MAPPINGS $MESH_UFFD_PAUSE_US $MESH_UFFD_RING $MESH_UFFD_DROP_CAPS $MESH_UFFD_CHECK $MESH_UFFD_ABORT $MESH_UFFD_HUGE_PAGES $MESH_UFFD_DENY"' &&
  shows "^524288 /dev/null 12 $directory/.libs/libmesh-uffd.so 0 7 20 30 100 0 1 1 0 2 make:gcc\$" "run sets the options"
expect 0 "run's words" "$command" run printf '%s|' -a --json 'b c' && shows '^-a\|--json\|b c\|$' "run leaves the program's arguments alone"
expect 0 "run --stats" "$command" run --stats true
if grep -q '^MESH COUNT: ' "$err"; then ok "run --stats"; else fail "run --stats shows none"; fi
LD_PRELOAD=$directory/none.so expect 0 "run with LD_PRELOAD" "$command" run -q -- sh -c 'echo $LD_PRELOAD'
shows "libmesh-uffd.so:$directory/none.so" "run keeps what is preloaded already"
expect 127 "run nothing" "$command" run "$directory/nothing" && says 'not found' "run a program that is not there"
expect 127 "run nothing" "$command" run mesh-uffd-no-such-program && says 'not found' "run a program that is not in PATH"
expect 126 "run a directory" "$command" run "$directory" && says 'cannot be run' "run a directory"
expect 1 "other library" "$command" run --library /bin/sh true && says 'is not libmesh-uffd' "run with a library that is another"
expect 1 "no library" "$command" run --library "$directory/none" true && says 'No such file' "run with a library that is not there"
printf '#!/bin/sh\necho "$LD_PRELOAD"\n' >"$directory/script"
chmod 755 "$directory/script"
expect 0 "run a script" "$command" run "$directory/script" && shows libmesh-uffd "run a script"
printf 'echo "$LD_PRELOAD"\n' >"$directory/script"
expect 0 "run a bare script" "$command" run "$directory/script" && shows libmesh-uffd "run a script without a first line"

static=''
for try in /sbin/ldconfig /usr/sbin/ldconfig.real /bin/busybox; do
  if [ -x $try ] && ! readelf -lW $try 2>/dev/null | grep -q INTERP && readelf -hW $try >/dev/null 2>&1; then static=$try; fi
done
if [ -z "$static" ]; then
  skip "no static program here"
else
  expect 0 "run a static program" "$command" run "$static" --help && says 'will not be affected: it is linked statically' "run warns of a static program"
  expect 1 "run --strict" "$command" run --strict "$static" --help && says 'linked statically' "run --strict fails for it"
  expect 0 "run -q" "$command" run -q "$static" --help
  if grep -q warning "$err"; then fail "run -q warns"; else ok "run -q is quiet"; fi
fi
cat >"$directory/own.c" <<'END'
#include <stddef.h>
static char pool[1 << 20], *at = pool;
void *malloc(size_t n);
void *malloc(size_t n) { char *p = at; at += (n + 15) & ~(size_t)15; return p; }
void free(void *p);
void free(void *p) { (void)p; }
int main(void) { return 0; }
END
if cc -rdynamic "$directory/own.c" -o "$directory/own" 2>"$err"; then
  expect 0 "run own" "$command" run "$directory/own" && says 'will not be affected: it contains a malloc of its own' "run warns of a malloc of the program's own"
  cc "$directory/own.c" -o "$directory/own" 2>"$err"
  expect 0 "run own" "$command" run "$directory/own" && says 'affected in part|will not be affected' "run warns of a hidden malloc of the program's own"
else
  skip "no compiler here"
fi

# ---- programs that are left alone ----
stands='will not be affected: MESH_UFFD_DENY says'
expect 1 "run a denied program" "$command" run --strict --deny ls:true true && says "$stands that 'true'" "run warns of a denied program"
printf '#!/bin/sh\nsleep 60\n' >"$directory/script"
expect 1 "run a denied script" "$command" run --strict --deny script "$directory/script" && says "$stands that 'script'" "run warns of a denied script"
"$command" run -q --deny script "$directory/script" &
pid=$!
processes+=("$pid")
for _ in $(seq 400); do ! "$command" doctor "$pid" 2>/dev/null | grep -q 'stands aside' || break; sleep 0.05; done
expect 1 "doctor of a denied process" "$command" doctor "$pid" && shows "LACK .* stands aside: MESH_UFFD_DENY says that 'script'" "doctor of a denied process"
printf '#!/usr/bin/env sh\n' >"$directory/script"
expect 0 "run a script by env" "$command" run --strict --deny script "$directory/script"
expect 1 "run a denied interpreter" "$command" run --strict --deny sh "$directory/script" && says "$stands that 'sh'" "run warns of a denied interpreter"
for compiler in cc clang; do
  echo 'int main(void) { return 0; }' >"$directory/sane.c"
  if $compiler -fsanitize=address "$directory/sane.c" -o "$directory/sane" 2>"$err"; then
    expect 1 "run a sanitizer" "$command" run --strict "$directory/sane" && says 'built with a sanitizer' "run warns of a sanitizer, $compiler's"
  else
    skip "a sanitizer, $compiler's: $(head -n 1 "$err")"
  fi
done

head -c 100 "$sparse" >"$directory/torn"
chmod 755 "$directory/torn"
expect '126|127|2' "run a torn program" "$command" run "$directory/torn"

# ---- a process under the library ----
if start 1200; then
  expect 0 stat "$command" stat "$pid" && shows '^tier +(full|user-only|none|unknown)' stat
  shows '^ +256 ' "stat shows the class of 256 bytes"
  expect 0 json "$command" stat --json "$pid" && cp "$out" "$directory/json"
  expect 0 openmetrics "$command" stat --openmetrics "$pid" && cp "$out" "$directory/metrics"
  if command -v python3 >/dev/null; then
    if python3 - "$directory/json" "$directory/metrics" "$pid" >"$out" 2>"$err" <<'END'
import json, re, sys
page = json.load(open(sys.argv[1]))
assert page["pid"] == int(sys.argv[3]) and page["name"] == "sparse" and page["page_version"] == 1
classes = {c["size"]: c for c in page["classes"]}
assert 19000 <= classes[256]["live_slots"] <= 21000 or classes[256]["live_slots"] > 21000, classes[256]
for c in page["classes"]:
    assert c["meshed_slots"] <= c["live_slots"] <= c["spans"] * c["slots"], c
assert page["live_bytes"] >= classes[256]["live_slots"] * 256 * 0.9
assert page["samples"] and all(a["time_seconds"] < b["time_seconds"] for a, b in zip(page["samples"], page["samples"][1:]))
assert page["memory"]["rss_bytes"] > 1 << 20
families, seen, name = {}, set(), None
lines = open(sys.argv[2]).read().split("\n")
assert lines[-2:] == ["# EOF", ""], lines[-2:]
for line in lines[:-2]:
    if line.startswith("# "):
        word, which, rest = line[2:].split(" ", 2)
        if word == "TYPE":
            assert which not in families, which
            families[which], name = rest, which
        assert which == name and word in ("TYPE", "HELP", "UNIT"), line
        assert word != "UNIT" or which.endswith("_" + rest), line
        continue
    m = re.fullmatch(r'([a-z_]+)\{((?:[a-z]+="[^"\\]*",?)+)\} [0-9.e+-]+', line)
    assert m, line
    suffix = {"counter": ["_total"], "gauge": [""], "info": ["_info"], "histogram": ["_bucket"]}[families[name]]
    assert m[1] in [name + s for s in suffix], line
    assert line.rsplit(" ", 1)[0] not in seen, line
    seen.add(line.rsplit(" ", 1)[0])
print(len(families), "families")
END
    then ok "stat --json and --openmetrics: $(cat "$out")"; else fail "stat --json and --openmetrics"; fi
  else
    skip "what stat --json and --openmetrics say: there is no python3"
  fi
  expect 0 "stat -n" "$command" stat -n 3 -i 0.05 -j "$pid"
  if [ "$(wc -l <"$out")" = 3 ]; then ok "stat three times"; else fail "stat three times"; fi
  expect 1 "stat to a full disk" sh -c "exec '$command' stat $pid >/dev/full" && says 'cannot be written' "stat to a full disk"
  for closed in "stat $pid" "stat -i 0.05 $pid" "map -o - $pid" "top -b -i 0.05 $pid"; do
    # shellcheck disable=SC2086 # words
    expect '0|141' "$closed into a closed pipe" bash -c "set -o pipefail; timeout 20 '$command' $closed | head -c 1 >/dev/null" &&
      ok "$closed into a pipe that is closed"
  done
  expect 1 "stat to nowhere" sh -c "exec '$command' stat $pid >&-" && says 'cannot be written' "stat without standard output"
  expect 0 "top of one" "$command" top --batch -n 2 -i 0.05 "$pid" && shows '^passes ' "top of one process" && ! grep -q 'under 0 us' "$out" || fail "top of one process"
  if [ "$(wc -L <"$out")" -gt 80 ] || [ "$(wc -l <"$out")" -gt 49 ]; then fail "top does not fit 80x24"; else ok "top fits 80x24"; fi
  expect 0 "top of all" "$command" top --batch -n 1 && shows "^ *$pid .* sparse" "top of all processes"
  expect 1 "top without a terminal" "$command" top "$pid" && says 'no terminal' "top without a terminal"
  if command -v script >/dev/null; then
    expect 0 "top on a terminal" script -qec "stty rows 24 cols 80; TERM=vt100 $command top -n 2 -i 0.1 $pid" /dev/null &&
      shows $'\033\\[\\?1049l' "top on a terminal leaves it as it was"
    expect 0 "top on a dumb terminal" script -qec "stty rows 24 cols 80; TERM=dumb $command top -n 2 -i 0.1 $pid" /dev/null &&
      shows '^passes ' "top on a dumb terminal"
    if grep -q $'\033' "$out"; then fail "top on a dumb terminal moves its cursor"; fi
  else
    skip "top on a terminal: there is no script(1)"
  fi
  expect 0 map "$command" map "$pid" && shows 'in memory$' map
  for picture in svg png; do
    if [ $picture = png ] && ! ldd "$command" | grep -q libpng; then
      expect 1 "map -o png" "$command" map -o "$directory/heap.png" "$pid" && says 'without libpng' "map without libpng"
    elif expect 0 "map -o $picture" "$command" map -o "$directory/heap.$picture" "$pid" && [ -s "$directory/heap.$picture" ]; then
      ok "map -o heap.$picture: $(wc -c <"$directory/heap.$picture") bytes"
    fi
  done
  if command -v python3 >/dev/null; then
    python3 -c 'import sys, xml.dom.minidom; assert xml.dom.minidom.parse(sys.argv[1]).getElementsByTagName("path")' \
      "$directory/heap.svg" 2>"$err" || fail "map: no well-formed SVG"
  fi
  expect 1 "map to nowhere" "$command" map -o "$directory/none/heap.svg" "$pid" && says 'No such file' "map to a directory that is not there"
  expect '0|1' "doctor of a process" "$command" doctor "$pid" && shows '^why: ' "doctor of a process"
  kill -STOP "$pid"
  expect '0|1' "stat of a stopped process" "$command" stat "$pid" && ok "stat of a stopped process"
  kill -CONT "$pid"
fi
expect '0|1' doctor "$command" doctor && shows '^tier [1-4], ' doctor

# ---- another user ----
nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
if [ "$(id -u)" != 0 ]; then
  skip "another user: this is not root"
elif ! "${nobody[@]}" true 2>/dev/null; then
  skip "another user: $("${nobody[@]}" true 2>&1)"
else
  for name in "stat" "top --batch -n 1" "map" "doctor"; do
    # shellcheck disable=SC2086 # words
    expect 4 "$name of root's process" "${nobody[@]}" "$command" $name "$pid" && says 'may not be read' "$name of root's process by nobody"
  done
  expect 0 "top of all" "${nobody[@]}" "$command" top --batch -n 1 && ok "top of all by nobody"
  expect '0|1' doctor "${nobody[@]}" "$command" doctor && shows '^user nobody' "doctor for nobody"
  if [ "$(stat -c %a:%u /dev/userfaultfd 2>/dev/null)" = 600:0 ]; then
    shows 'udevadm trigger --name-match=userfaultfd' "doctor tells nobody how to get the device"
  fi
  if [ -u /usr/bin/su ]; then
    expect '0|1' "run setuid" "${nobody[@]}" "$command" run /usr/bin/su --version && says 'set-user-ID' "run warns of a set-user-ID program"
  else
    skip "no set-user-ID program here"
  fi
  start 30 "${nobody[@]}"
  expect 0 "stat by nobody" "${nobody[@]}" "$command" stat "$pid" && shows '^tier ' "stat of one's own process by nobody"
  expect 0 "map by nobody" "${nobody[@]}" "$command" map "$pid" && shows 'in memory$' "map of one's own process by nobody"
fi

# ---- a forked child, an upgraded library, a program that contains it ----
if command -v python3 >/dev/null; then
  PYTHONMALLOC=malloc "$command" run -- python3 -c '
import os, sys, time
keep = [bytes(300) for i in range(100000)]
time.sleep(1)
child = os.fork()
if child: print(child, flush=True)
time.sleep(60)' >"$directory/child" &
  processes+=("$!")
  parent=$!
  for _ in $(seq 100); do [ ! -s "$directory/child" ] || break; sleep 0.1; done
  child=$(cat "$directory/child")
  processes+=("$child")
  sleep 0.3
  expect 0 "stat of a forked child" "$command" stat -j "$child" && shows "\"pid\":$child," "stat of a forked child"
  expect 0 "stat of its parent" "$command" stat -j "$parent" && shows '"live_bytes":[0-9]{8}' "stat of its parent"
  expect 0 "map of a forked child" "$command" map "$child" && shows 'in memory$' "map of a forked child"
  mv "$directory/.libs/libmesh-uffd.so" "$directory/.libs/old" && rm "$directory/.libs/old"
  expect 0 "stat of a deleted library" "$command" stat "$child" && shows '^library|deleted' "stat where the library's file is gone"
  cp "$LIB" "$directory/.libs/libmesh-uffd.so"
  kill -KILL "$child" "$parent"
else
  skip "a forked child: there is no python3"
fi
archive=$(dirname "$LIB")/libmesh-uffd.a
if [ ! -f "$archive" ] || [ -z "${abs_top_srcdir:-}" ]; then
  skip "a static program that contains the library: there is no archive"
elif ! cc -static -I"$abs_top_srcdir/include" -I"$abs_top_srcdir/tests" -I"$abs_top_srcdir" -D_GNU_SOURCE "$abs_top_srcdir/tests/sparse.c" "$archive" \
  -luring -pthread -o "$directory/contains" 2>"$err"; then
  skip "a static program that contains the library: cannot be built: $(head -n 1 "$err")"
else
  strip "$directory/contains"
  "$directory/contains" 30 stay >/dev/null 2>&1 &
  pid=$!
  processes+=("$pid")
  for _ in $(seq 100); do "$command" stat "$pid" >/dev/null 2>&1 && break; sleep 0.1; done
  expect 0 "stat of a static program" "$command" stat "$pid" && shows "^ +256 " "stat of a stripped static program"
  expect 0 "map of a static program" "$command" map "$pid" && shows 'in memory$' "map of a stripped static program"
fi

# ---- processes that end while they are read ----
worst=0
for i in $(seq 12); do
  "$command" run -- "$directory/sparse" 5 stay >/dev/null 2>&1 &
  pid=$!
  processes+=("$pid")
  (sleep "0.$((i * 7 % 10))$i"; kill -KILL "$pid") &
  for _ in $(seq 400); do
    for what in "stat -j" map "top -b -n 1"; do
      status=0
      # shellcheck disable=SC2086 # words
      timeout -s KILL 20 "$command" $what "$pid" >"$out" 2>"$err" || status=$?
      case $status in
      0 | 3 | 5) ;;
      *) fail "$what of a process that ends: status $status"; worst=1 ;;
      esac
    done
    [ $status = 3 ] && break
  done
done
[ $worst = 1 ] || ok "processes that end while they are read"
"$command" run -- "$directory/sparse" 1 stay >/dev/null 2>&1 &
pid=$!
for _ in $(seq 100); do "$command" stat "$pid" >/dev/null 2>&1 && break; sleep 0.05; done
expect 0 "stat to the end" "$command" stat -i 0.02 -j "$pid" && ok "stat until the process ends: $(wc -l <"$out") lines"

# ---- record ----
expect 0 record "$command" record -o "$directory/run.svg" -i 0.05 -- "$directory/sparse" 1 && grep -q polyline "$directory/run.svg" && ok record
expect 0 "record csv" "$command" record -o "$directory/run.csv" -i 0.05 -- "$directory/sparse" 1
if awk -F, 'NR == 1 { if ($2 != "seconds") exit 1; next } $3 <= 0 || $2 < last { exit 1 } { last = $2 } END { exit NR < 5 }' "$directory/run.csv"; then
  ok "record -o run.csv: $(wc -l <"$directory/run.csv") lines"
else
  fail "record -o run.csv"
fi
expect 0 "record --compare" "$command" record -c -o "$directory/run.csv" -i 0.05 -- "$directory/sparse" 0.5
if grep -q ^0, "$directory/run.csv" && grep -q ^1, "$directory/run.csv"; then ok "record --compare"; else fail "record --compare"; fi
expect 9 "record's status" "$command" record -o "$directory/run.svg" sh -c 'exit 9' && ok "record gives the program's status"
# shellcheck disable=SC2016 # for the program
expect 143 "record's signal" "$command" record -o "$directory/run.svg" sh -c 'kill -TERM $$' && ok "record tells of a signal"
expect 1 "record to nowhere" "$command" record -o "$directory/none/run.svg" true && says 'No such file' "record to a directory that is not there"

[ $failed = 0 ] || exit 1
echo passed
