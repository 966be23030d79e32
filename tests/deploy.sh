#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The files of examples/deploy, as far as they can be tried here: syntax, that what they name is there, the seccomp profile,
# and that the figures reach a collector. What cannot be tried is said in doc/deployment.md.
. "${abs_top_srcdir:?}/tests/begin.sh"
fail() {
  echo "FAIL $*"
  [ ! -s "$directory/said" ] || sed 's/^/    /' "$directory/said" | head -n 20
  failed=1
}
export PATH=$abs_top_builddir/cmd:$PATH
unset LD_PRELOAD
cd "$abs_top_srcdir/examples/deploy" || exit 99
need python3

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
mesh-uffd run --library "$LIB" -- "$abs_top_builddir/tests/sparse" 600 stay >/dev/null 2>&1 &
process=$!
for _ in $(seq 1200); do mesh-uffd stat --openmetrics "$process" >"$directory/metrics" 2>/dev/null && break; sleep 0.05; done
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
  # The alerts are raised when they should be, and not else: 20 minutes of made-up figures, a value a minute.
  cat >"$directory/raised.yml" <<END
rule_files: [$PWD/prometheus-rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'mesh_uffd_tier{pid="1",comm="a"}', values: '3x20'}
      - {series: 'mesh_uffd_tier{pid="2",comm="b"}', values: '2x20'}
      - {series: 'mesh_uffd_memory_bytes{pid="1",comm="a"}', values: '300x20'}
      - {series: 'mesh_uffd_saved_bytes{pid="1",comm="a"}', values: '100x20'}
      - {series: 'mesh_uffd_process_mappings{pid="1",comm="a"}', values: '60000x20'}
      - {series: 'mesh_uffd_process_max_mappings{pid="1",comm="a"}', values: '65530x20'}
      - {series: 'mesh_uffd_process_mappings{pid="2",comm="b"}', values: '50000x20'}
      - {series: 'mesh_uffd_process_max_mappings{pid="2",comm="b"}', values: '65530x20'}
      - {series: 'mesh_uffd_fault_latency_seconds_bucket{pid="1",comm="a",le="0.004194304"}', values: '0+0x20'}
      - {series: 'mesh_uffd_fault_latency_seconds_bucket{pid="1",comm="a",le="0.008388608"}', values: '0+60x20'}
      - {series: 'mesh_uffd_fault_latency_seconds_bucket{pid="1",comm="a",le="+Inf"}', values: '0+60x20'}
    alert_rule_test:
      - {eval_time: 5m, alertname: MeshUffdLimitedTier, exp_alerts: []}
      - eval_time: 15m
        alertname: MeshUffdLimitedTier
        exp_alerts:
          - exp_labels: {pid: "1", comm: a, severity: info}
            exp_annotations:
              summary: "a (1) meshes only while it has one thread"
              description: "Tier 3. mesh-uffd doctor 1 says what would raise it."
      - eval_time: 15m
        alertname: MeshUffdMappingsShort
        exp_alerts:
          - exp_labels: {pid: "1", comm: a, severity: warning}
            exp_annotations: {summary: "a (1) has nearly as many mappings as vm.max_map_count allows"}
      - eval_time: 15m
        alertname: MeshUffdSlowFaults
        exp_alerts:
          - exp_labels: {pid: "1", comm: a, severity: warning}
            exp_annotations: {summary: "Touches of memory that is being meshed wait long in a (1)"}
    promql_expr_test:
      - expr: mesh_uffd:saved:ratio
        eval_time: 15m
        exp_samples: [{labels: 'mesh_uffd:saved:ratio{pid="1",comm="a"}', value: 0.25}]
END
  if promtool test rules "$directory/raised.yml" >"$directory/said" 2>&1; then ok "alerts are raised, by promtool"; else fail "alerts, by promtool"; fi
  # What the dashboard asks for is well-formed.
  python3 -c '
import json
asked = [t["expr"].replace("$comm", "a") for p in json.load(open("grafana-dashboard.json"))["panels"] for t in p["targets"]]
print(json.dumps({"groups": [{"name": "asked", "rules": [{"record": "asked:%d" % i, "expr": e} for i, e in enumerate(asked)]}]}))' \
    >"$directory/asked.yml"
  if promtool check rules "$directory/asked.yml" >"$directory/said" 2>&1; then ok "dashboard, by promtool"; else fail "dashboard, by promtool"; fi
else
  skip "rules, by promtool: not installed"
fi
mkdir "$directory/collector"
# Ended as systemd does it: all of its processes get the signal, and those that they have made meanwhile get it too.
left=0
for _ in $(seq 10); do
  PID=$process timeout 120 setsid ./mesh-uffd-metrics tried "$directory/collector" 0.02 2>/dev/null &
  for _ in $(seq 1200); do [ ! -s "$directory/collector/mesh-uffd-tried.prom" ] || break; sleep 0.05; done
  python3 - "$!" 2>"$directory/said" <<'END' || fail "mesh-uffd-metrics cannot be ended"
import os, signal, sys
group = int(open("/proc/%s/task/%s/children" % (sys.argv[1], sys.argv[1])).read())
for _ in range(3000):
    try: os.killpg(group, signal.SIGTERM)
    except ProcessLookupError: break
END
  wait "$!"
  [ -z "$(ls "$directory/collector")" ] || left=$((left + 1))
  rm -f "$directory/collector"/*
done
if [ $left = 0 ]; then ok "mesh-uffd-metrics leaves no file when it is ended"; else fail "mesh-uffd-metrics left a file $left times of 10"; fi
PID=$process timeout 120 ./mesh-uffd-metrics tried "$directory/collector" 0.1 2>"$directory/said" &
writer=$!
for _ in $(seq 600); do [ ! -s "$directory/collector/mesh-uffd-tried.prom" ] || break; sleep 0.1; done
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
if [ -n "$(ls "$directory/collector")" ]; then fail "mesh-uffd-metrics leaves a file"; else ok "mesh-uffd-metrics ends with its process"; fi

finish
