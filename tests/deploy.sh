#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The files of examples/deploy, as far as they can be tried here: syntax, that what they name is there, the seccomp profile,
# and that the figures reach a collector. What cannot be tried is said in doc/deployment.md.
set -u
: "${LIB:?}" "${abs_top_srcdir:?}" "${abs_top_builddir:?}"
directory=$(mktemp -d) || exit 99
process=''
# shellcheck disable=SC2317 # called by trap
clean_up() {
  [ -z "$process" ] || kill -KILL "$process" 2>/dev/null
  rm -rf "$directory"
}
trap clean_up EXIT
failed=0
fail() {
  echo "FAIL $*"
  [ ! -s "$directory/said" ] || sed 's/^/    /' "$directory/said" | head -n 20
  failed=1
}
ok() { echo "ok $*"; }
skip() { echo "skipped part: $*"; }
export PATH=$abs_top_builddir/cmd:$PATH
unset LD_PRELOAD
cd "$abs_top_srcdir/examples/deploy" || exit 99
if ! command -v python3 >/dev/null; then
  echo "skipped: there is no python3"
  exit 77
fi

# ---- each is named on the page that says which to choose ----
for file in *; do
  grep -q -e "$file" "$abs_top_srcdir/doc/deployment.md" || fail "doc/deployment.md does not name $file"
done

# ---- systemd ----
if command -v systemd-analyze >/dev/null; then
  for file in mesh-uffd.service.conf mesh-uffd-filter.service.conf mesh-uffd-capability.service.conf; do
    { echo '[Service]'; echo 'ExecStart=/bin/true'; sed '/^\[Service\]$/d' $file; } >"$directory/tried-$file.service"
    mv "$directory/tried-$file.service" "$directory/tried.service"
    if systemd-analyze verify "$directory/tried.service" >"$directory/said" 2>&1 && ! grep -q tried.service "$directory/said"; then
      ok $file
    else
      fail $file
    fi
  done
else
  skip "the drop-ins: there is no systemd-analyze"
fi

# A line of it in a unit without a filter makes a filter of it.
grep -q '^SystemCallFilter' mesh-uffd.service.conf && fail "mesh-uffd.service.conf has a filter, for units that have none"
# Whatever the library asks of the kernel is in the drop-in for units that have one.
sed -n '/define MU_SYS_LIST/,/Requests/s/X(\([a-z0-9_]*\))/\n\1\n/gp' "$abs_top_srcdir/src/sys.h" | grep -x '[a-z0-9_]*' | grep -vx -e userfaultfd -e '' | LC_ALL=C sort >"$directory/calls"
sed -n 's/^SystemCallFilter=//p' mesh-uffd-filter.service.conf | tr ' ' '\n' | LC_ALL=C sort >"$directory/allowed"
if LC_ALL=C comm -23 "$directory/calls" "$directory/allowed" >"$directory/said" && [ ! -s "$directory/said" ] && [ -s "$directory/calls" ]; then
  ok "the drop-in for filters names all $(wc -l <"$directory/calls") calls"
else
  fail "the drop-in for filters lacks calls"
fi

# ---- seccomp ----
cat >"$directory/default.json" <<'END'
{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
  {"names": ["process_madvise", "mount"], "action": "SCMP_ACT_ERRNO", "args": [], "errnoRet": 1},
  {"names": ["read", "close_range"], "action": "SCMP_ACT_ALLOW", "args": []}]}
END
if ./seccomp-profile --io-uring "$directory/default.json" >"$directory/seccomp.json" 2>"$directory/said" &&
  python3 - "$directory/seccomp.json" >"$directory/said" 2>&1 <<'END'
import json, sys
profile = json.load(open(sys.argv[1]))
of = lambda action: {n for r in profile["syscalls"] if r["action"] == action for n in r["names"]}
assert profile["defaultAction"] == "SCMP_ACT_ERRNO" and of("SCMP_ACT_ERRNO") == {"mount"}
assert {"read", "close_range", "process_madvise", "io_uring_setup"} <= of("SCMP_ACT_ALLOW")
assert "userfaultfd" not in of("SCMP_ACT_ALLOW")
END
then ok seccomp-profile; else fail seccomp-profile; fi
./seccomp-profile --all "$directory/default.json" >/dev/null 2>&1 && fail "seccomp-profile takes any option"

# ---- Kubernetes ----
if python3 -c 'import yaml' 2>/dev/null; then
  if python3 -c 'import yaml; p = yaml.safe_load(open("kubernetes.yaml")); assert p["kind"] == "Pod" and p["spec"]["containers"]' 2>"$directory/said"; then
    ok "kubernetes.yaml: its syntax"
  else
    fail kubernetes.yaml
  fi
else
  skip "kubernetes.yaml: there is no yaml for python3"
fi

# ---- figures ----
mesh-uffd run --library "$LIB" -- "$abs_top_builddir/tests/sparse" 60 stay >/dev/null 2>&1 &
process=$!
for _ in $(seq 200); do mesh-uffd stat --openmetrics "$process" >"$directory/metrics" 2>/dev/null && break; sleep 0.05; done
if python3 - "$directory/metrics" >"$directory/said" 2>&1 <<'END'
import json, re, sys
shown = set(re.findall(r"^(mesh_uffd_\w+)\{", open(sys.argv[1]).read(), re.M))
rules = open("prometheus-rules.yml").read()
recorded = set(re.findall(r"record: (\S+)", rules))
dashboard = json.load(open("grafana-dashboard.json"))
expressions = [t["expr"] for p in dashboard["panels"] for t in p["targets"]] + re.findall(r"expr: (.*)", rules)
named = {n for e in expressions for n in re.findall(r"mesh_uffd[\w:]+", e)}
assert len(named) > 8 and shown, named
assert named <= shown | recorded, sorted(named - shown - recorded)
END
then ok "rules and dashboard name figures that there are"; else fail "rules and dashboard"; fi
if command -v promtool >/dev/null; then
  if promtool check rules prometheus-rules.yml >"$directory/said" 2>&1; then ok "rules, by promtool"; else fail "rules, by promtool"; fi
else
  skip "rules, by promtool: not installed"
fi
mkdir "$directory/collector"
PID=$process timeout 20 ./mesh-uffd-metrics tried "$directory/collector" 0.1 2>"$directory/said" &
writer=$!
for _ in $(seq 100); do [ ! -s "$directory/collector/mesh-uffd-tried.prom" ] || break; sleep 0.1; done
cp "$directory/collector/mesh-uffd-tried.prom" "$directory/prom" 2>/dev/null
if ! grep -q '^mesh_uffd_live_bytes{' "$directory/prom"; then
  fail mesh-uffd-metrics
elif command -v promtool >/dev/null && ! promtool check metrics <"$directory/prom" >"$directory/said" 2>&1 && grep -q 'error while linting' "$directory/said"; then
  fail "mesh-uffd-metrics, by promtool"
else
  ok mesh-uffd-metrics
fi
kill -KILL "$process"
wait "$writer"
process=''
if [ -n "$(ls "$directory/collector")" ]; then fail "mesh-uffd-metrics leaves a file"; else ok "mesh-uffd-metrics ends with its process"; fi

[ $failed = 0 ] || exit 1
echo passed
