/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reclaim and preparation in batches. For a range there are three ways, tried in this order where the kernel allows
 * them: vector  process_madvise on ourselves, up to 512 ranges a call and one flush (from Linux 6.13 on) ring io_uring:
 * kernel workers do it off our path; also what has no vectored call (fallocate) plain   one call a range The ring is
 * made on first use and torn down when idle: its worker counts as a thread of the process.
 */
#include "uffd/ring.h"
#include "src/options.h"
#include "src/sys.h"
#include "uffd/internal.h"
#include "uffd/uring.h"
#include <errno.h>
#include <sys/auxv.h>
#include <sys/mman.h>

enum { ENTRIES = 128, VECTOR = 512, PATIENCE_S = 2 };

static struct {
  struct io_uring ring;
  int state;  /* 0 not tried, 1 in use, -1 refused */
  int vector; /* -1: refused */
  int pidfd;
} r = {.pidfd = -1};

/* What a completion is for: an operation whose failure matters, or one that nothing depends on. */
enum { OPTIONAL, NEEDED };

/* Operations under way that nobody waits for yet. The error stays until somebody asks for it. */
static struct {
  unsigned count;
  int first_error;
} ahead;

static bool ring_ready(void) {
  if (r.state == 0) {
    struct io_uring_params p = {.flags = IORING_SETUP_CLAMP};
    /* Its worker would be a thread more, where we must know that there is none. */
    bool refused = !mu_engine.own_table || !mu_options.ring || mu_engine_tier() > MU_TIER_FULL_WP ||
                   mu_sys_refused(MU_SYS_io_uring_setup);
    r.state = !refused && io_uring_queue_init_params(ENTRIES, &r.ring, &p) == 0 ? 1 : -1;
    /* Not inherited: a child would share the queues' memory. liburing's mappings are few and of known place. */
    if (r.state == 1) io_uring_ring_dontfork(&r.ring);
  }
  return r.state == 1;
}

static void ring_end(void) {
  if (r.state == 1) io_uring_queue_exit(&r.ring);
  if (r.state == 1) r.state = 0;
}

static void ring_broken(void) {
  ring_end();
  r.state = -1;
}

static void finish_ahead(void);

void mu_reclaim_idle(void) {
  finish_ahead();
  ring_end();
  if (r.pidfd >= 0) mu_close(r.pidfd);
  r.pidfd = -1;
}

void mu_reclaim_forget(void) {
  ahead.count = 0;
  ahead.first_error = 0;
  r.state = r.vector = 0;
  r.pidfd = -1;
}

/* What the kernel has not begun is not begun any more; all of it is answered. */
static void cancel_all(void) {
  struct io_uring_sync_cancel_reg all = {
      .fd = -1, .flags = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY, .timeout = {.tv_sec = PATIENCE_S}};
  io_uring_register_sync_cancel(&r.ring, &all); /* Linux 6.0; before that there is only waiting */
}

/* Submits what is queued and waits for n completions. The first error of one that is needed goes to *first_error, if
 * there is none yet. False when the ring failed: how many operations were carried out is not known then, so all of them
 * must be done again by other means (they may be). None is under way any more, in any case: one that drops memory must
 * not come late. The kernel may lose the worker that was to carry them out (seen on Linux 6.18, with many forks): what
 * has not come after a while is cancelled, and the ring counts as failed.
 */
static bool ring_finish(unsigned n, int *first_error) {
  bool lost = false;
  if (mu_sys_refused(MU_SYS_io_uring_enter)) return false;
  while (n) {
    struct __kernel_timespec patience = {.tv_sec = PATIENCE_S};
    struct io_uring_cqe *cqe;
    int e = io_uring_submit_and_wait_timeout(&r.ring, &cqe, 1, lost ? NULL : &patience, NULL);
    if (e == -ETIME) {
      lost = true;
      cancel_all();
    } else if (e < 0 && e != -EINTR && e != -EAGAIN && e != -EBUSY) {
      return false;
    }
    while (n && io_uring_peek_cqe(&r.ring, &cqe) == 0) {
      if (cqe->res < 0 && !*first_error && io_uring_cqe_get_data64(cqe) == NEEDED) *first_error = cqe->res;
      io_uring_cqe_seen(&r.ring, cqe);
      mu_count(&mu_engine_counters.ops_ring, 1);
      n--;
    }
  }
  return !lost;
}

/* ---- ahead of time -------------------------------------------------------------------------------------------------
 */

static void finish_ahead(void) {
  unsigned n = ahead.count;
  ahead.count = 0;
  if (!n || ring_finish(n, &ahead.first_error)) return;
  ring_broken();
  if (!ahead.first_error) ahead.first_error = -EIO;
}

int mu_ring_wait(void) {
  finish_ahead();
  int error = ahead.first_error;
  ahead.first_error = 0;
  return error;
}

static struct io_uring_sqe *next_entry(void) {
  struct io_uring_sqe *sqe = ahead.count < ENTRIES ? io_uring_get_sqe(&r.ring) : NULL;
  if (sqe) return sqe;
  finish_ahead();
  return ring_ready() ? io_uring_get_sqe(&r.ring) : NULL;
}

/* What cannot be submitted now goes with the next, or when it is waited for. */
static void begin(struct io_uring_sqe *sqe, uint64_t what) {
  io_uring_sqe_set_data64(sqe, what);
  ahead.count++;
  if (!mu_sys_refused(MU_SYS_io_uring_enter)) io_uring_submit(&r.ring);
}

bool mu_ring_fallocate_begin(int fd, uint64_t offset, size_t len) {
  struct io_uring_sqe *sqe = ring_ready() ? next_entry() : NULL;
  if (!sqe) return false;
  io_uring_prep_fallocate(sqe, fd, 0, (off_t)offset, (off_t)len);
  begin(sqe, NEEDED);
  return true;
}

void mu_populate(void *start, size_t len) {
  struct io_uring_sqe *sqe = ring_ready() ? next_entry() : NULL;
  if (!sqe) return;
  io_uring_prep_madvise(sqe, start, (off_t)len, MU_MADV_POPULATE_READ);
  begin(sqe, OPTIONAL);
}

int mu_fallocate(int fd, uint64_t offset, size_t len) {
  int e;
  do e = (int)mu_sys_call(MU_SYS_fallocate, fd, 0, (long)offset, (long)len, 0, 0);
  while (e == -EINTR);
  mu_count(&mu_engine_counters.ops_plain, 1);
  return e;
}

/* ---- dropping ------------------------------------------------------------------------------------------------------
 */

static bool drop_by_vector(const struct mu_range *ranges, size_t n) {
  if (r.vector < 0 || !mu_engine.own_table) return false;
  if (r.pidfd < 0) r.pidfd = (int)mu_sys_call(MU_SYS_pidfd_open, mu_pid(), 0, 0, 0, 0, 0);
  struct iovec iov[VECTOR];
  size_t bytes = 0;
  for (size_t i = 0; i < n; i++) {
    iov[i] = (struct iovec){ranges[i].start, ranges[i].len};
    bytes += ranges[i].len;
  }
  long done =
      r.pidfd < 0 ? -EPERM : mu_sys_call(MU_SYS_process_madvise, r.pidfd, (long)iov, (long)n, MADV_DONTNEED, 0, 0);
  if (done == (long)bytes) mu_count(&mu_engine_counters.ops_vector, n);
  return done == (long)bytes;
}

static bool drop_by_ring(const struct mu_range *ranges, size_t n) {
  finish_ahead(); /* completions are counted, not told apart; and the ring may break */
  if (!ring_ready()) return false;
  for (size_t done = 0; done < n;) {
    unsigned batch = 0;
    int error = 0;
    for (struct io_uring_sqe *sqe; done + batch < n && batch < ENTRIES && (sqe = io_uring_get_sqe(&r.ring)); batch++) {
      io_uring_prep_madvise(sqe, ranges[done + batch].start, (off_t)ranges[done + batch].len, MADV_DONTNEED);
      io_uring_sqe_set_data64(sqe, NEEDED);
    }
    if (!batch || !ring_finish(batch, &error)) {
      ring_broken();
      return false;
    }
    if (error) return false;
    done += batch;
  }
  return true;
}

/* Memory that the program has locked is dropped all the same: it is not the program's any more. */
static bool drop_plainly(const struct mu_range *ranges, size_t n) {
  bool all = true;
  for (size_t i = 0; i < n; i++)
    all &= mu_madvise(ranges[i].start, ranges[i].len, MADV_DONTNEED) == 0 ||
           mu_madvise(ranges[i].start, ranges[i].len, MU_MADV_DONTNEED_LOCKED) == 0;
  mu_count(&mu_engine_counters.ops_plain, n);
  return all;
}

static bool drop_batch(const struct mu_range *ranges, size_t n) {
  if (n > 1 && drop_by_vector(ranges, n)) return true;
  if (n > 1 && drop_by_ring(ranges, n)) return true;
  bool all = drop_plainly(ranges, n);
  /* What works one by one and not as a vector: a kernel, or a sandbox, that does not allow the vector. */
  if (all && n > 1) r.vector = -1;
  return all;
}

/* Memory that was dropped is handed out as zeros. An emulator may accept the call and do nothing (QEMU before 7.1). */
static bool dropping_clears(void) {
  static enum { UNKNOWN, CLEARS, KEEPS } known;
  size_t size = getauxval(AT_PAGESZ);
  int err;
  if (known != UNKNOWN) return known == CLEARS;
  _Atomic char *page = mu_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &err);
  if (!page) return false;
  atomic_store_explicit(page, 1, memory_order_relaxed);
  if (mu_madvise(page, size, MADV_DONTNEED) == 0)
    known = atomic_load_explicit(page, memory_order_relaxed) ? KEEPS : CLEARS;
  mu_munmap(page, size);
  return known == CLEARS;
}

bool mu_drop(const struct mu_range *ranges, size_t n) {
  if (!dropping_clears()) return false;
  bool all = true;
  for (size_t i = 0; i < n; i += VECTOR) all &= drop_batch(ranges + i, mu_min(n - i, VECTOR));
  return all;
}
