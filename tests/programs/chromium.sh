# SPDX-License-Identifier: Apache-2.0
# needs: chromium
# limit: 180
# may not mesh
# It brings an allocator of its own, and sandboxes its processes: it must simply work. But its zygote insists on being
# of one thread: so here the mesher starts when there is something to mesh, which is never, and not at once.
set -eu
unset MESH_UFFD_TEST_EAGER
export HOME=$PWD XDG_CONFIG_HOME=$PWD/config XDG_CACHE_HOME=$PWD/cache
cat >page.html <<'P'
<html><body><div id=a></div><script>
let t = []; for (let i = 0; i < 50000; i++) { t.push("x".repeat(i % 50) + i); if (i % 3) t.splice(0, 1); }
document.getElementById("a").textContent = "done " + t.join("").length;
for (let i = 0; i < 300; i++) { const e = document.createElement("p"); e.textContent = "paragraph " + i; document.body.append(e); }
</script></body></html>
P
options=(--headless --disable-gpu --no-first-run "--user-data-dir=$PWD/profile")
[ "$(id -u)" != 0 ] || options+=(--no-sandbox)
timeout -k 5 120 chromium "${options[@]}" --dump-dom "file://$PWD/page.html" >dom 2>log || { tail -n 20 log >&2; exit 1; }
grep -o 'done [0-9][0-9]*' dom
[ "$(grep -o 'paragraph [0-9][0-9]*' dom | sort -u | wc -l)" = 300 ]
timeout -k 5 120 chromium "${options[@]}" --screenshot="$PWD/shot.png" "file://$PWD/page.html" >/dev/null 2>log || { tail -n 20 log >&2; exit 1; }
[ -s shot.png ]
