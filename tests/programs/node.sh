# SPDX-License-Identifier: Apache-2.0
# needs: node
# limit: 180
# several threads
# program: node|nodejs
# shows: digests over Buffers, by five threads, equal those without the library
# compare
# may not mesh
# JavaScript's own heap is V8's; Buffers, workers, compression, child processes and the parser use malloc.
set -eu
cat >program.js <<'J'
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const crypto = require('crypto'), zlib = require('zlib'), { execFileSync } = require('child_process');
function churn(seed) {
  let state = seed, keep = new Map();
  const next = () => (state = (state * 1103515245 + 12345) % 2147483648) >> 8;
  for (let i = 0; i < 60000; i++) {
    keep.set(next() % 5000, Buffer.alloc(next() % 900 + 1, i % 251));
    if (i % 3) keep.delete(next() % 5000);
  }
  const h = crypto.createHash('sha256');
  for (const k of [...keep.keys()].sort((a, b) => a - b)) h.update(keep.get(k));
  const text = Buffer.from(JSON.stringify([...keep.keys()]).repeat(20));
  h.update(zlib.gunzipSync(zlib.gzipSync(text)));
  return h.digest('hex');
}
if (!isMainThread) { parentPort.postMessage(churn(workerData)); return; }
(async () => {
  console.log(churn(1));
  const all = [2, 3, 4, 5].map(n => new Promise((ok, no) => {
    const w = new Worker(__filename, { workerData: n }); w.on('message', ok); w.on('error', no);
  }));
  for (const r of await Promise.all(all)) console.log(r);
  console.log(execFileSync(process.execPath, ['-e', 'console.log(6*7)']).toString().trim());
  console.log(new Intl.NumberFormat('en').format(1234567.891), 'x'.repeat(1e6).replace(/x{10}/g, 'y').length);
})();
J
node program.js
