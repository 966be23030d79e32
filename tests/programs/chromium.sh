# SPDX-License-Identifier: Apache-2.0
# needs: chromium setpriv
# limit: 180
# program: chrom.*
# shows: what a page's script makes, as text and as a picture, with the sandbox; it brings a malloc of its own
# may not mesh
# It must simply work. Its zygote insists on being of one thread: so the mesher may not start before there is anything to
# mesh. As root it refuses to have a sandbox: then as nobody.
set -eu
if [ "$(id -u)" = 0 ]; then
  exec setpriv --reuid=65534 --regid=65534 --clear-groups env LD_PRELOAD="${LD_PRELOAD:-}" bash "$0"
fi
export HOME=$PWD XDG_CONFIG_HOME=$PWD/config XDG_CACHE_HOME=$PWD/cache
cat >page.html <<'P'
<html><body><div id=a></div><script>
let t = []; for (let i = 0; i < 50000; i++) { t.push("x".repeat(i % 50) + i); if (i % 3) t.splice(0, 1); }
document.getElementById("a").textContent = "done " + t.join("").length;
for (let i = 0; i < 300; i++) { const e = document.createElement("p"); e.textContent = "paragraph " + i; document.body.append(e); }
</script></body></html>
P
options=(--headless --disable-gpu --no-first-run "--user-data-dir=$PWD/profile")
# Where no user may have namespaces of his own there is no sandbox without the library either.
unshare -U true 2>/dev/null || options+=(--no-sandbox)
run() { timeout -k 5 80 chromium "${options[@]}" "$@" "file://$PWD/page.html" 2>log || { tail -n 20 log >&2; exit 1; }; }
run --dump-dom >dom
grep -q 'done [0-9][0-9]*' dom
[ "$(grep -o 'paragraph [0-9][0-9]*' dom | sort -u | wc -l)" = 300 ]
run --screenshot="$PWD/shot.png" >/dev/null
[ -s shot.png ]
