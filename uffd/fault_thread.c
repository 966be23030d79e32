/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fault thread: reads who waits for closed memory and lets them go on, by giving the unit back if the mesher does
 * not have it already. It never touches arena memory, never allocates, and uses no lock.
 */
#include "src/probe.h"
#include "src/sys.h"
#include "src/thread.h"
#include "uffd/internal.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

enum { WATCHED = 2 };

static struct {
  pthread_t thread;
  int bell; /* eventfd: something of what follows has changed */
  _Atomic uint32_t stop;
  _Atomic uint32_t watched; /* how many of these are valid */
  struct pollfd watch[WATCHED];
  void (*rung)(void);
} fault = {.bell = -1};

static bool wait_out_closing(void) {
  uint32_t phase;
  for (unsigned i = 0; (phase = atomic_load_explicit(&mu_barrier.phase, memory_order_acquire)) == MU_PHASE_CLOSING; i++)
    mu_wait_a_little(&mu_barrier.phase, MU_PHASE_CLOSING, i);
  return phase == MU_PHASE_CLOSED;
}

/* The unit is RETURNED, by us or by the mesher: see that this page of it is there. */
static void complete(unsigned page) {
  uint64_t have = atomic_load_explicit(&mu_barrier.present, memory_order_relaxed);
  if (have >> page & 1)
    mu_put_back(page, 1);
  else
    mu_fill_zero(page);
}

static void resolve(unsigned page) {
  unsigned size = mu_barrier.unit_pages, unit = page / size;
  _Atomic uint32_t *state = &mu_barrier.units[unit];
  uint32_t seen = MU_UNIT_CLOSED;
  /* acquire and release, as in barrier.c */
  if (atomic_compare_exchange_strong_explicit(state, &seen, MU_UNIT_RETURNED, memory_order_acq_rel,
                                              memory_order_acquire)) {
    mu_put_back(unit * size, size);
    if (!(mu_barrier_present() >> page & 1)) mu_fill_zero(page);
    return;
  }
  if (seen == MU_UNIT_CLAIMED &&
      atomic_compare_exchange_strong_explicit(state, &seen, MU_UNIT_WAITED, memory_order_acq_rel, memory_order_acquire))
    return; /* the mesher wakes */
  if (seen == MU_UNIT_WAITED) return;
  if (seen == MU_UNIT_RETURNED)
    complete(page);
  else
    mu_wake(page, 1); /* DONE */
}

static void handle(const struct uffd_msg *msg) {
  if (msg->event != UFFD_EVENT_PAGEFAULT) return;
  uintptr_t address = msg->arg.pagefault.address & ~(uintptr_t)(mu_engine.page - 1);
  uint64_t began = mu_now_ns();
  atomic_store_explicit(&mu_barrier.busy, 1, memory_order_relaxed);
  atomic_thread_fence(memory_order_seq_cst); /* see wait_for_fault_thread */
  bool closed = wait_out_closing();
  uintptr_t page = (address - (uintptr_t)mu_barrier.start) >> mu_engine.shift;
  if (closed && page < mu_barrier.pages)
    resolve((unsigned)page);
  else
    mu_wake_range((struct uffdio_range){address, mu_engine.page}); /* its barrier is open again */
  atomic_store_explicit(&mu_barrier.busy, 0, memory_order_release);
  uint64_t took = mu_now_ns() - began;
  MU_PROBE2(waited, address, took);
  mu_count(&mu_engine_counters.faults, 1);
  mu_count(&mu_engine_counters.fault_ns[63 - __builtin_clzll(took | 1)], 1);
  if (took > atomic_load_explicit(&mu_engine_counters.longest_fault_ns, memory_order_relaxed))
    atomic_store_explicit(&mu_engine_counters.longest_fault_ns, took, memory_order_relaxed);
}

/* The first two are our own, the others are watched. One that has nothing to tell ever again is left out. */
static void report(struct pollfd *fds, uint32_t n) {
  for (uint32_t i = 2; i < n; i++) {
    if (fds[i].revents & POLLPRI) fault.rung();
    if (fds[i].revents & (POLLERR | POLLNVAL)) fds[i].fd = -1;
  }
}

/* Returns how many there are now. */
static uint32_t add_watched(struct pollfd *fds, uint32_t n) {
  uint64_t rings;
  mu_read(fault.bell, &rings, sizeof rings);
  for (uint32_t all = 2 + atomic_load_explicit(&fault.watched, memory_order_acquire); n < all; n++)
    fds[n] = fault.watch[n - 2];
  return n;
}

/* For the next events; after some, not for ever: should userfaultfd be closed, waiters may wait for us to notice. */
static bool wait_for_events(struct pollfd *fds, uint32_t *n, bool heard) {
  enum { HEARD_MS = 1000, TRIES = 100, PAUSE_NS = 1000000 };
  _Atomic uint32_t never = 0;
  for (int i = 0; i < TRIES; i++) {
    long r = mu_poll(fds, *n, heard ? HEARD_MS : -1);
    if (atomic_load_explicit(&mu_engine.closing, memory_order_seq_cst)) return false;
    if (r >= 0) report(fds, *n);
    if (r >= 0 && fds[1].revents) *n = add_watched(fds, *n);
    if (r >= 0) return !atomic_load_explicit(&fault.stop, memory_order_acquire);
    mu_futex_wait(&never, 0, PAUSE_NS);
  }
  /* A sandbox does not let us wait. Who waits now goes on when the mesher opens the barrier, the last one. */
  atomic_store_explicit(&mu_engine.broken, 1, memory_order_release);
  return false;
}

static void *run(void *unused) {
  (void)unused;
  mu_thread_settle("mesh-uffd-fault");
  mu_thread_short_slice();
  mu_thread_urgent(true); /* whoever waits for it may be a real-time thread, or others may be */
  int uffd = mu_engine.uffd;
  struct pollfd fds[2 + WATCHED] = {{.fd = uffd, .events = POLLIN}, {.fd = fault.bell, .events = POLLIN}};
  struct uffd_msg msgs[16];
  uint32_t watched = 2;
  for (bool heard = false; wait_for_events(fds, &watched, heard); heard = fds[0].revents) {
    ssize_t n = fds[0].revents ? mu_read(uffd, msgs, sizeof msgs) : 0;
    for (ssize_t i = 0; i < n / (ssize_t)sizeof *msgs; i++) handle(&msgs[i]);
  }
  return NULL;
}

static void ring_bell(void) {
  uint64_t one = 1;
  mu_write(fault.bell, &one, sizeof one);
}

int mu_fault_thread_start(void) {
  atomic_store_explicit(&fault.stop, 0, memory_order_relaxed);
  atomic_store_explicit(&fault.watched, 0, memory_order_relaxed);
  fault.bell = (int)mu_sys_call(MU_SYS_eventfd2, 0, 02000000 /* EFD_CLOEXEC */, 0, 0, 0, 0);
  if (fault.bell < 0) return fault.bell;
  int r = mu_thread_create(&fault.thread, run);
  if (r) {
    mu_close(fault.bell);
    fault.bell = -1;
  }
  return -r;
}

void mu_fault_thread_let_go(void) {
  atomic_store_explicit(&fault.stop, 1, memory_order_release);
  ring_bell();
}

void mu_fault_thread_stop(void) {
  if (fault.bell < 0) return;
  mu_fault_thread_let_go();
  pthread_join(fault.thread, NULL);
  mu_close(fault.bell);
  fault.bell = -1;
}

bool mu_engine_watch(int fd, void (*rung)(void)) {
  uint32_t n = atomic_load_explicit(&fault.watched, memory_order_relaxed);
  if (mu_engine.uffd < 0 || n == WATCHED) return false;
  fault.watch[n] = (struct pollfd){.fd = fd, .events = POLLPRI};
  fault.rung = rung;
  atomic_store_explicit(&fault.watched, n + 1, memory_order_release);
  ring_bell();
  return true;
}
