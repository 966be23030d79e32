# SPDX-License-Identifier: Apache-2.0
# needs: redis-server redis-cli redis-benchmark redis-check-rdb
# limit: 400
# several threads
# program: redis-server.*|redis-check-rdb
# shows: digests of master, replica and what is loaded from a dump are equal; each dump of the loop is whole
# subset
# A master and its replica under load. Both save in a loop, the master evicts, and what it changes comes to the replica.
set -eu
start() {
  redis-server --port 0 --unixsocket "$PWD/$1" --dir "$PWD" --dbfilename "$1.rdb" --save '' --appendonly no \
    --enable-debug-command yes --maxmemory-samples 10 --pidfile "$PWD/$1.pid" --daemonize no "${@:2}" >"$1.log" 2>&1 &
}
cli() { redis-cli -s "$PWD/$1" "${@:2}"; }
load() { redis-benchmark -s "$PWD/master" -q -c 20 -P 8 -r 30000 "$@" >/dev/null; }
await() {
  local i
  for i in $(seq 1200); do
    [ "$("${@:2}" 2>/dev/null)" != "$1" ] || return 0
    sleep 0.1
  done
  echo "never so: ${*:2} = $1" >&2
  tail -n 5 ./*.log >&2
  exit 1
}
stop() {
  cli "$1" shutdown nosave 2>/dev/null || true
}
field() { cli "$1" info "$2" | tr -d '\r' | sed -n "s/^$3://p"; }
digest() { cli "$1" debug digest; }
# Dumps again and again until told to end, and looks at each. A dump is refused while another child lives, such as the one
# that brings the replica up to date.
dump_in_a_loop() {
  local n=0
  while [ ! -e end ] || [ $n -lt 3 ]; do
    await 'Background saving started' cli "$1" bgsave
    await 0 field "$1" persistence rdb_bgsave_in_progress
    [ "$(field "$1" persistence rdb_last_bgsave_status)" = ok ] || { echo "$1: a dump failed" >&2; return 1; }
    redis-check-rdb "$1.rdb" >check.$1 || { tail -n 5 check.$1 >&2; return 1; }
    n=$((n + 1))
  done
}
# fill PREFIX N BYTES: by a script, so that the replica gets it too.
fill() {
  cli master eval 'for i = 1, ARGV[1] do redis.call("set", KEYS[1] .. ":" .. i, string.rep("v", ARGV[2] + i % 7)) end' \
    1 "$1" "$2" "$3" >/dev/null
}

start master
await PONG cli master ping
# A replica finds its master by TCP alone.
port=$((20000 + $$ % 12000)) # below those that the kernel hands out
cli master config set port $port >/dev/null
cli master config set client-output-buffer-limit 'replica 0 0 0' >/dev/null
start replica --replicaof 127.0.0.1 $port
await up field replica replication master_link_status
dump_in_a_loop master & loops=$!
dump_in_a_loop replica & loops="$loops $!"
for round in $(seq $((SUBSET ? 2 : 6))); do
  cli master config set maxmemory 0 >/dev/null
  fill "a$round" 60000 240
  load -n 40000 -d $((round * 37)) -t set,lpush,sadd,hset,zadd
  load -n 40000 -d 300 -t get,set,incr,lpop,spop
  cli master config set maxmemory-policy allkeys-random maxmemory 12mb >/dev/null
  fill "b$round" 15000 492
  load -n 10000 -d 100 -t set,get
done
cli master config set maxmemory 0 >/dev/null
# A replica that begins anew gets it all by another fork.
cli replica replicaof no one >/dev/null
cli replica replicaof 127.0.0.1 $port >/dev/null
load -n 20000 -d 100 -t set,sadd
await up field replica replication master_link_status
touch end
for loop in $loops; do wait "$loop"; done
cli master set last word >/dev/null
await 1 cli master wait 1 1000
[ "$(digest master)" = "$(digest replica)" ] || { echo "the replica differs" >&2; exit 1; }
cli master save >/dev/null
cp master.rdb copy.rdb
start copy
await PONG cli copy ping
await 0 field copy persistence loading
[ "$(digest master)" = "$(digest copy)" ] || { echo "what was saved differs" >&2; exit 1; }
echo "keys: $(cli copy dbsize)"
stop copy; stop replica; stop master
wait
