# SPDX-License-Identifier: Apache-2.0
# needs: nginx wrk python3
# limit: 120
# best tier
# program: nginx
# shows: each file as it is on disk, straight, zipped and by a proxy, on idle connections too; no error under load
# Files and a proxy to itself under load. What it keeps long is little: connections, and files that it keeps open. So
# there are many of both, of which most are closed again, and what is left must go on to answer.
set -eu
ulimit -n 8192 2>/dev/null || true
mkdir html
for i in $(seq 40); do head -c $((i * 3001)) /dev/urandom >html/f$i; done
for i in $(seq 3000); do echo "small $i" >"html/s$i"; done
user=
[ "$(id -u)" != 0 ] || user='user root;'
cat >conf <<C
$user
worker_processes 2; pid $PWD/pid; error_log $PWD/error.log; daemon off; worker_rlimit_nofile 8192;
events { worker_connections 2000; }
http {
  access_log off; root $PWD/html; gzip on; gzip_types *; gzip_min_length 1;
  keepalive_timeout 100; open_file_cache max=2000 inactive=2s;
  client_body_temp_path $PWD/t1; proxy_temp_path $PWD/t2; fastcgi_temp_path $PWD/t3; uwsgi_temp_path $PWD/t4;
  scgi_temp_path $PWD/t5;
  server { listen 127.0.0.1:PORT; location /p/ { proxy_pass http://127.0.0.1:PORT/; } }
}
C
port=$((20000 + $$ % 12000)) # below those that the kernel hands out
sed -i "s/PORT/$port/g" conf
nginx -p "$PWD" -c "$PWD/conf" -e "$PWD/error.log" &
trap 'kill %1' EXIT
cat >load.lua <<'L'
local n = 0
request = function()
  n = n + 1
  wrk.headers["Accept-Encoding"] = n % 2 == 0 and "gzip" or nil
  return wrk.format(nil, (n % 3 == 0 and "/p" or "") .. "/f" .. n % 40 + 1)
end
L
cat >check.py <<'P'
import gzip, http.client, random, sys, time
port, how = int(sys.argv[1]), sys.argv[2]
def ask(c, name, path="", **headers):
    c.request("GET", path + "/" + name, headers=headers)
    r = c.getresponse(); body = r.read()
    if r.getheader("Content-Encoding") == "gzip": body = gzip.decompress(body)
    if r.status != 200 or body != open("html/" + name, "rb").read(): raise SystemExit("%s%s: %s, differs" % (path, name, r.status))
def connect(): return http.client.HTTPConnection("127.0.0.1", port, timeout=60)
if how == "await":
    for i in range(200):
        try: ask(connect(), "f1"); raise SystemExit(0)
        except OSError: time.sleep(.05)
    raise SystemExit("no answer")
if how == "files":
    c = connect()
    for i in range(1, 41):
        for path in "", "/p": ask(c, "f%d" % i, path), ask(c, "f%d" % i, path, **{"Accept-Encoding": "gzip"})
if how == "idle":
    r = random.Random(5)
    for round in range(3):
        held = []
        for i in range(1500):
            c = connect(); ask(c, "s%d" % (i + 1)); held.append(c)
        r.shuffle(held)
        for c in held[150:]: c.close()
        for again in range(6):
            time.sleep(.2)
            for c in held[:150]: ask(c, "s%d" % r.randrange(1, 3001)), ask(c, "f%d" % r.randrange(1, 41), "/p")
P
python3 check.py $port await
wrk --timeout 60 -t 2 -c 40 -d 4 -s load.lua "http://127.0.0.1:$port/f1" >load
python3 check.py $port idle
kill -HUP "$(cat pid)"
wrk --timeout 60 -t 2 -c 40 -d 2 -s load.lua "http://127.0.0.1:$port/f1" >>load
! grep -E 'Non-2xx|timeout [1-9]' load >&2
python3 check.py $port files
kill -QUIT "$(cat pid)"
wait || true
trap - EXIT
! grep -E '\[(alert|emerg|crit)\]|signal' error.log >&2
