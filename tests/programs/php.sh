# SPDX-License-Identifier: Apache-2.0
# needs: php
# limit: 120
# program: php.*
# shows: sums and a digest of a table equal those without the library
# compare
# Every value by malloc.
set -eu
export USE_ZEND_ALLOC=0
php -n -d memory_limit=-1 -r '
$state = 1; $t = [];
function nextn() { global $state; $state = ($state * 1103515245 + 12345) % 2147483648; return intdiv($state, 65536); }
for ($i = 1; $i < 300000; $i++) {
  $k = nextn() % 20000;
  $t[$k][] = ["n" => $i, "s" => str_repeat("x", $i % 300) . $i];
  if ($i % 3) unset($t[nextn() % 20000]);
}
$i = 0;
foreach (array_keys($t) as $k) if ($i++ % 12) unset($t[$k]);
$end = microtime(true) + 1.5; $h = "";
while (microtime(true) < $end) foreach ($t as $v) $h = md5(serialize($v));
ksort($t); $sum = 0;
foreach ($t as $v) foreach ($v as $e) $sum += $e["n"] + strlen($e["s"]);
echo count($t), " $sum ", md5(serialize($t)), " ", preg_match_all("/x{5}\d/", json_encode($t)), "\n";
'
