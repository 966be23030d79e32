# SPDX-License-Identifier: Apache-2.0
# needs: sqlite3
# limit: 120
# program: sqlite3
# shows: queries, the integrity check and the whole dump equal those without the library
# compare
# subset
set -eu
n=$((SUBSET ? 20000 : 100000))
sqlite3 test.db <<SQL
PRAGMA journal_mode = WAL;
PRAGMA cache_size = 4000;
CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT, b INTEGER, c BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $n)
  INSERT INTO t SELECT i, printf('row %d %s', i, hex(i * 7919)), (i * 7919) % 1000, zeroblob(i % 700) FROM n;
CREATE INDEX t_b ON t (b, a);
DELETE FROM t WHERE id % 3 = 0;
UPDATE t SET a = a || ' changed' WHERE b < 300;
SELECT b, count(*), min(a), max(length(a)) FROM t GROUP BY b ORDER BY b;
CREATE VIRTUAL TABLE f USING fts5(a);
INSERT INTO f SELECT a FROM t;
SELECT count(*) FROM f WHERE f MATCH 'changed';
SELECT sum(length(x)) FROM (SELECT group_concat(a, '|') x FROM t GROUP BY b % 100);
SELECT json_array_length(json_group_array(json_object('a', a, 'b', b))) FROM t;
SELECT count(*) FROM t x JOIN t y ON x.b = y.b AND x.id < y.id WHERE x.b < 20;
DELETE FROM t WHERE b > 100;
VACUUM;
PRAGMA integrity_check;
SQL
sqlite3 test.db .dump | cksum
