# SPDX-License-Identifier: Apache-2.0
# needs: nginx wrk curl
# limit: 120
# may not mesh
# Files and a proxy to itself under load; what comes out is what is on disk, and no answer is an error.
set -eu
mkdir html
for i in $(seq 40); do head -c $((i * 3001)) /dev/urandom >html/f$i; done
user=
[ "$(id -u)" != 0 ] || user='user root;'
cat >conf <<C
$user
worker_processes 2; pid $PWD/pid; error_log $PWD/error.log; daemon off;
events { worker_connections 256; }
http {
  access_log off; root $PWD/html; gzip on; gzip_types *; gzip_min_length 1;
  client_body_temp_path $PWD/t1; proxy_temp_path $PWD/t2; fastcgi_temp_path $PWD/t3; uwsgi_temp_path $PWD/t4;
  scgi_temp_path $PWD/t5;
  server { listen 127.0.0.1:PORT; location /p/ { proxy_pass http://127.0.0.1:PORT/; } }
}
C
port=$((20000 + $$ % 20000))
sed -i "s/PORT/$port/g" conf
nginx -p "$PWD" -c "$PWD/conf" -e "$PWD/error.log" &
trap 'kill %1' EXIT
for _ in $(seq 100); do curl -sf "http://127.0.0.1:$port/f1" >/dev/null && break; sleep 0.1; done
cat >load.lua <<'L'
local n = 0
request = function()
  n = n + 1
  wrk.headers["Accept-Encoding"] = n % 2 == 0 and "gzip" or nil
  return wrk.format(nil, (n % 3 == 0 and "/p" or "") .. "/f" .. n % 40 + 1)
end
L
wrk -t 2 -c 40 -d 6 -s load.lua "http://127.0.0.1:$port/f1" >load
kill -HUP "$(cat pid)"
wrk -t 2 -c 40 -d 3 -s load.lua "http://127.0.0.1:$port/f1" >>load
! grep -E 'Non-2xx|timeout [1-9]' load >&2
for i in $(seq 40); do
  curl -sf --compressed "http://127.0.0.1:$port/p/f$i" | cmp - "html/f$i"
done
kill -QUIT "$(cat pid)"
wait || true
trap - EXIT
! grep -E '\[(alert|emerg|crit)\]|signal' error.log >&2
