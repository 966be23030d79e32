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
#include <errno.h>
#include <liburing.h>

enum { ENTRIES = 128, VECTOR = 512 };

static struct {
  struct io_uring ring;
  int state;  /* 0 not tried, 1 in use, -1 refused */
  int vector; /* 0 not tried, 1 works, -1 refused */
  int pidfd;
} r = {.pidfd = -1};

/* Operations under way that nobody waits for yet. */
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

void mu_reclaim_idle(void) {
  mu_ring_wait();
  ring_end();
  if (r.pidfd >= 0) mu_close(r.pidfd);
  r.pidfd = -1;
  if (r.vector == 1) r.vector = 0;
}

void mu_reclaim_forget(void) {
  ahead.count = 0;
  r.state = r.vector = 0;
  r.pidfd = -1;
}

/* Submits what is queued and waits for n completions, handing each result to `done`. False when the ring failed: how
 * many operations were carried out is not known then, so all of them must be done again by other means (they may be).
 */
static bool ring_finish(unsigned n, int *first_error) {
  *first_error = 0;
  if (mu_sys_refused(MU_SYS_io_uring_enter)) return false;
  while (n) {
    struct io_uring_cqe *cqe;
    int e = io_uring_submit_and_wait(&r.ring, 1);
    if (e < 0 && e != -EINTR && e != -EAGAIN && e != -EBUSY) return false;
    while (n && io_uring_peek_cqe(&r.ring, &cqe) == 0) {
      if (cqe->res < 0 && !*first_error) *first_error = cqe->res;
      io_uring_cqe_seen(&r.ring, cqe);
      mu_count(&mu_engine_counters.ops_ring, 1);
      n--;
    }
  }
  return true;
}

/* ---- ahead of time -------------------------------------------------------------------------------------------------
 */

static struct io_uring_sqe *next_entry(void) {
  struct io_uring_sqe *sqe = ahead.count < ENTRIES ? io_uring_get_sqe(&r.ring) : NULL;
  if (!sqe && mu_ring_wait() == 0) sqe = io_uring_get_sqe(&r.ring);
  return sqe;
}

int mu_ring_wait(void) {
  unsigned n = ahead.count;
  int error = ahead.first_error;
  ahead.count = 0;
  ahead.first_error = 0;
  if (!n) return error;
  if (ring_finish(n, &error)) return error;
  ring_broken();
  return -EIO;
}

static void begin(void) {
  ahead.count++;
  int e = mu_sys_refused(MU_SYS_io_uring_enter) ? -EAGAIN : io_uring_submit(&r.ring);
  if (e < 0) ahead.first_error = e; /* submitted with the next, or found out by mu_ring_wait */
}

bool mu_ring_fallocate_begin(int fd, uint64_t offset, size_t len) {
  struct io_uring_sqe *sqe = ring_ready() ? next_entry() : NULL;
  if (!sqe) return false;
  io_uring_prep_fallocate(sqe, fd, 0, (off_t)offset, (off_t)len);
  begin();
  return true;
}

void mu_populate(void *start, size_t len) {
  struct io_uring_sqe *sqe = ring_ready() ? next_entry() : NULL;
  if (!sqe) return;
  io_uring_prep_madvise(sqe, start, (off_t)len, MU_MADV_POPULATE_READ);
  begin();
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
  r.vector = done == (long)bytes ? 1 : -1;
  if (r.vector == 1) mu_count(&mu_engine_counters.ops_vector, n);
  return r.vector == 1;
}

static bool drop_by_ring(const struct mu_range *ranges, size_t n) {
  if (!ring_ready()) return false;
  mu_ring_wait(); /* completions are counted, not told apart */
  for (size_t done = 0; done < n;) {
    unsigned batch = 0;
    int error;
    for (struct io_uring_sqe *sqe; done + batch < n && batch < ENTRIES && (sqe = io_uring_get_sqe(&r.ring)); batch++)
      io_uring_prep_madvise(sqe, ranges[done + batch].start, (long)ranges[done + batch].len, MADV_DONTNEED);
    if (!ring_finish(batch, &error) || error) {
      ring_broken();
      return false;
    }
    done += batch;
  }
  return true;
}

static void drop_plainly(const struct mu_range *ranges, size_t n) {
  for (size_t i = 0; i < n; i++) mu_madvise(ranges[i].start, ranges[i].len, MADV_DONTNEED);
  mu_count(&mu_engine_counters.ops_plain, n);
}

void mu_drop(const struct mu_range *ranges, size_t n) {
  for (size_t i = 0; i < n; i += VECTOR) {
    size_t batch = mu_min(n - i, VECTOR);
    if (batch == 1 || (!drop_by_vector(ranges + i, batch) && !drop_by_ring(ranges + i, batch)))
      drop_plainly(ranges + i, batch);
  }
}
