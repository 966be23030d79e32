# SPDX-License-Identifier: Apache-2.0
# needs: /usr/lib/postgresql/*/bin/initdb pgbench setpriv
# limit: 300
# program: postgres
# shows: the four sums that each transaction of pgbench keeps equal; queries; statements prepared before
# best tier
# initdb, pgbench, and the sums that every transaction keeps equal. Refuses to run as root: then as nobody, with the
# capability that userfaultfd needs. Its contexts take blocks of 1 KiB and more, which are meshed in the best tier alone:
# thousands of prepared statements, of which most go again.
set -eu
if [ "$(id -u)" = 0 ]; then
  exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+sys_ptrace --ambient-caps=+sys_ptrace \
    env LD_PRELOAD="${LD_PRELOAD:-}" bash "$0"
fi
PATH=$(echo /usr/lib/postgresql/*/bin | awk '{ print $NF }'):$PATH
export HOME=$PWD PGHOST=$PWD PGUSER=tester PGDATABASE=postgres PGDATA=$PWD/data
initdb -D data -U tester -A trust -E UTF8 --locale=C >initdb.log 2>&1 || { cat initdb.log >&2; exit 1; }
pg_ctl -D data -w -l log -o "-k $PWD -c listen_addresses= -c shared_buffers=16MB -c fsync=off" start >/dev/null ||
  { cat log >&2; exit 1; }
trap 'pg_ctl -D data -m immediate stop >/dev/null 2>&1' EXIT
pgbench -q -i -s 2 2>/dev/null
pgbench -c 6 -j 2 -t 1500 >bench
pgbench -n -c 4 -j 2 -S -M prepared -t 3000 >>bench
psql -qAt -v ON_ERROR_STOP=1 <<SQL
CREATE TABLE t AS SELECT i, md5(i::text) AS m, repeat('x', i % 500) AS r FROM generate_series(1, 60000) i;
CREATE INDEX ON t (m);
SELECT count(*), sum(length(r)) FROM t WHERE m < '8';
SELECT count(*) FROM (SELECT string_agg(m, ',' ORDER BY m) FROM t GROUP BY i % 1000) s;
SELECT count(*) FROM t a JOIN t b ON a.m = b.m;
DO \$\$ DECLARE a jsonb := '[]'; BEGIN FOR i IN 1..1500 LOOP a := a || to_jsonb(repeat('y', i % 70)); END LOOP;
  RAISE NOTICE '%', jsonb_array_length(a); END \$\$;
VACUUM FULL t;
SQL
psql -qAt -v ON_ERROR_STOP=1 >prepared <<SQL
DO \$\$ BEGIN FOR i IN 1..4000 LOOP EXECUTE format('PREPARE p%s(int) AS SELECT %s * \$1', i, i); END LOOP; END \$\$;
DO \$\$ BEGIN FOR i IN 1..4000 LOOP IF i % 13 <> 0 THEN EXECUTE format('DEALLOCATE p%s', i); END IF; END LOOP; END \$\$;
SELECT pg_sleep(1);
EXECUTE p13(2); EXECUTE p1300(3); EXECUTE p3991(1);
SELECT count(*) FROM pg_prepared_statements;
SQL
[ "$(echo $(cat prepared))" = '26 3900 3991 307' ] || { cat prepared >&2; exit 1; }
sums=$(psql -qAt -c 'SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
  (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history)')
echo "$sums"
awk -F'|' '{ exit !($1 == $2 && $2 == $3 && $3 == $4) }' <<<"$sums"
pg_ctl -D data -m fast -w stop >/dev/null
trap - EXIT
! grep -E 'PANIC|terminated by signal' log >&2
