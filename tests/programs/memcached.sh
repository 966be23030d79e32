# SPDX-License-Identifier: Apache-2.0
# needs: memcached memcslap python3
# limit: 120
# several threads
# program: memcached
# shows: each value read back over eight connections is the last one written
# may not mesh
# A load, and values that are written and read back over eight connections. Its slabs are large blocks: there is little
# to mesh.
set -eu
user=
[ "$(id -u)" != 0 ] || user='-u root'
# shellcheck disable=SC2086 # words are wanted
memcached $user -s "$PWD/socket" -p 0 -U 0 -t 4 -m 32 2>log &
trap 'kill %1' EXIT
for _ in $(seq 100); do [ -S socket ] && break; sleep 0.1; done
port=$((20000 + $$ % 12000)) # below those that the kernel hands out
# shellcheck disable=SC2086
memcached $user -l 127.0.0.1 -p $port -U 0 -t 4 -m 32 2>>log &
trap 'kill %1 %2' EXIT
for _ in $(seq 300); do (: <>/dev/tcp/127.0.0.1/$port) 2>/dev/null && break; sleep 0.1; done
memcslap --servers=127.0.0.1:$port --concurrency=8 --execute-number=2000 --test=set >slap 2>&1
memcslap --servers=127.0.0.1:$port --concurrency=8 --execute-number=2000 --test=get --initial-load=5000 >>slap 2>&1
cat >check.py <<'P'
import hashlib, random, socket, threading
def value(k, n): return (hashlib.sha256(("%s %d" % (k, n)).encode()).hexdigest() * (n % 60 + 1)).encode()
bad = []
def client(me):
    s = socket.socket(socket.AF_UNIX); s.connect("socket"); f = s.makefile("rwb")
    r, have = random.Random(me), {}
    for i in range(6000):
        k = "k%d-%d" % (me, r.randrange(300))
        if r.random() < .5:
            v = value(k, i); have[k] = v
            f.write(b"set %s 0 0 %d\r\n%s\r\n" % (k.encode(), len(v), v)); f.flush()
            if f.readline() != b"STORED\r\n": bad.append(k)
        else:
            f.write(b"get %s\r\n" % k.encode()); f.flush()
            line = f.readline()
            if line.startswith(b"VALUE"):
                data = f.read(int(line.split()[3]) + 2)[:-2]; f.readline()
                if data != have.get(k): bad.append(k)
            elif k in have: bad.append(k)
threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print("wrong:", bad[:5]); raise SystemExit(bool(bad))
P
python3 check.py
kill %1 %2
wait || true
trap - EXIT
! grep -i -E 'assert|signal' log >&2
