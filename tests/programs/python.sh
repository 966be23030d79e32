# SPDX-License-Identifier: Apache-2.0
# needs: python3 /usr/lib/python3*/test/test_subprocess.py
# limit: 1500
# several threads
# program: python.*
# shows: CPython's own tests
# subset
# CPython's own tests of memory, threads, processes, ctypes and asyncio, every object by malloc. What fails is run once
# more without the library: what fails there too is not counted. PYTHON_TESTS: these instead of all.
set -eu
export PYTHONMALLOC=malloc
tests=(test_gc test_memoryview test_array test_dict test_list test_set test_mmap test_thread test_threading_local
  test_fork1 test_ctypes test_threadsignals test_popen test_wait3 test_wait4 test_zlib test_json test_generators
  test_posix test_struct test_asyncio.test_futures test_asyncio.test_locks test_asyncio.test_queues
  test_asyncio.test_unix_events)
[ -n "$SUBSET" ] || tests+=(test_weakref test_bytes test_str test_threading test_queue test_os test_pickle test_re
  test_lzma test_bz2 test_hashlib test_coroutines test_contextvars test_subprocess test_asyncio
  test_multiprocessing_fork test_multiprocessing_spawn test_concurrent_futures test_faulthandler test_io test_socket
  test_signal test_tracemalloc test_capi test_sqlite3 test_ssl test_unicode test_decimal test_statistics test_tarfile
  test_zipfile test_xml_etree test_email test_pathlib)
# shellcheck disable=SC2206 # words are wanted
[ -z "${PYTHON_TESTS:-}" ] || tests=($PYTHON_TESTS)
[ -z "$SUBSET" ] || echo "a part of the list: without multiprocessing, subprocess, most of asyncio"
known=()
for t in "${tests[@]}"; do
  python3 -c "import importlib.util as u, sys; sys.exit(u.find_spec('test.$t') is None)" 2>/dev/null && known+=("$t")
done
run() { python3 -m test -j2 --timeout=300 -u all,-network,-urlfetch,-largefile,-audio,-gui,-cpu,-curses "$@" 2>&1; }
run "${known[@]}" >log && { tail -n 3 log; exit 0; }
grep -E '^[0-9:.]+ load' log | tail -n 3
# Names as the summary lists them.
mapfile -t bad < <(sed -n '/ tests\? failed:/,/^$/p' log | grep -oE 'test_[a-zA-Z0-9_.]+' | sort -u)
[ ${#bad[@]} -gt 0 ] || { tail -n 60 log >&2; exit 1; }
status=0
for t in "${bad[@]}"; do
  if env -u LD_PRELOAD python3 -m test -u all,-network,-urlfetch,-largefile,-audio,-gui,-cpu,-curses "$t" >alone 2>&1; then
    # A test that depends on time may have been unlucky.
    if python3 -m test -u all,-network,-urlfetch,-largefile,-audio,-gui,-cpu,-curses "$t" >again 2>&1; then
      echo "$t: failed once, passed alone"
    else
      echo "$t fails with the library" >&2
      grep -E -A 25 '^(ERROR|FAIL):' again | head -n 60 >&2
      status=1
    fi
  else
    echo "$t: fails without the library too"
  fi
done
exit $status
