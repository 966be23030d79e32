# SPDX-License-Identifier: Apache-2.0
# needs: redis-server redis-cli redis-benchmark
# limit: 120
# subset
# A server that evicts and saves all the time, and its replica; what was saved and what was replicated is what there is.
set -eu
start() {
  redis-server --port 0 --unixsocket "$PWD/$1" --dir "$PWD" --dbfilename "$1.rdb" --save '' --appendonly no \
    --enable-debug-command yes --maxmemory-samples 10 --pidfile "$PWD/$1.pid" --daemonize no "${@:2}" >"$1.log" 2>&1 &
}
cli() { redis-cli -s "$PWD/$1" "${@:2}"; }
await() {
  local i
  for i in $(seq 200); do
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
saved() { field master persistence rdb_bgsave_in_progress; }
digest() { cli "$1" debug digest; }

start master
await PONG cli master ping
# A replica finds its master by TCP alone.
port=$((20000 + $$ % 20000))
cli master config set port $port >/dev/null
start replica --replicaof 127.0.0.1 $port
await up field replica replication master_link_status
rounds=$((SUBSET ? 2 : 12))
for round in $(seq $rounds); do
  cli master config set maxmemory 0 >/dev/null
  cli master debug populate 60000 "a$round" 240 >/dev/null
  redis-benchmark -s "$PWD/master" -q -n 40000 -c 20 -P 8 -r 30000 -d $((round * 37)) -t set,lpush,sadd,hset,zadd >/dev/null
  cli master bgsave >/dev/null
  redis-benchmark -s "$PWD/master" -q -n 40000 -c 20 -P 8 -r 30000 -d 300 -t get,set,incr,lpop,spop >/dev/null
  await 0 saved
  cli master config set maxmemory-policy allkeys-random maxmemory 12mb >/dev/null
  cli master debug populate 15000 "b$round" 492 >/dev/null
  cli master bgsave >/dev/null
  redis-benchmark -s "$PWD/master" -q -n 10000 -c 20 -P 8 -r 30000 -d 100 -t set,get >/dev/null
  await 0 saved
done
[ "$(field master persistence rdb_last_bgsave_status)" = ok ]
# What debug populate makes is not replicated: begin anew with both.
cli master config set maxmemory 0 >/dev/null
cli replica replicaof no one >/dev/null
cli replica replicaof 127.0.0.1 $port >/dev/null
redis-benchmark -s "$PWD/master" -q -n 20000 -c 5 -P 8 -r 30000 -d 100 -t set,sadd >/dev/null
await up field replica replication master_link_status
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
