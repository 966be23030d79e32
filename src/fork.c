/* SPDX-License-Identifier: Apache-2.0 */
#include "src/fork.h"
#include "src/global_heap.h"
#include "src/log.h"
#include "src/mesher.h"
#include "src/pass.h"
#include "src/profile.h"
#include "src/span_table.h"
#include "src/sys.h"
#include "src/thread_local_heap.h"
#include <pthread.h>
#include <sys/mman.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* Reads 1 in the process that wrote it and 0 in a child that has not: its page is wiped on fork. NULL: not to be had.
 */
static uint32_t *same_process;

static void count_fork(void) {
  atomic_fetch_add_explicit(&mu_forks, 1, memory_order_relaxed);
}

static void mark_process(void) {
  if (same_process) *same_process = 1;
}

/*
 * libc's own lock of the list of streams, recursive, which its fork takes after our handlers. Who holds it may wait for
 * a stream whose owner allocates (getline): so it comes before all locks of ours. Weak: only glibc has them.
 */
void _IO_list_lock(void) __attribute__((weak));
void _IO_list_unlock(void) __attribute__((weak));
void _IO_list_resetlock(void) __attribute__((weak));

/* ---- locks ---------------------------------------------------------------------------------------------------------
 */

/* Every lock there is, in the order in which they are taken. */
enum { PASSES, REGISTRY, FIRST_CLASS, EXTENTS = FIRST_CLASS + MU_CLASSES - 1, META, TABLES, PROFILE, GATE, LOCKS };
_Static_assert(LOCKS <= 64, "one bit each in struct mu_fork");

static struct mu_lock *lock_at(int i) {
  switch (i) {
  case PASSES:
    return &mu_passes;
  case REGISTRY:
    return &mu_registry;
  case EXTENTS:
    return &mu_extent_lock;
  case META:
    return &mu_meta_lock;
  case TABLES:
    return &mu_span_table_lock;
  case PROFILE:
    return &mu_profile_lock;
  case GATE:
    return &mu_gate;
  default:
    return &mu_class_heaps[i - FIRST_CLASS + 1].lock;
  }
}

/* In the child, where somebody else was at work under the lock: what he changed may be half done. */
static void lost(int i) {
  switch (i) {
  case PASSES: /* runs that a pass has closed stay closed */
  case GATE:
    return;
  case REGISTRY:
    mu_registry_lost();
    return;
  case EXTENTS:
    mu_extents_lost();
    return;
  case META:
    mu_meta_lost();
    return;
  case TABLES:
    mu_span_tables_lost();
    return;
  case PROFILE:
    mu_profile_on = false;
    return;
  default:
    mu_class_lost((unsigned)(i - FIRST_CLASS + 1));
  }
}

/* The last lock that the calling thread holds: in a signal handler, what it has interrupted does. -1: none. */
static int last_of_mine(void) {
  int i = LOCKS - 1;
  while (i >= 0 && !mu_lock_is_mine(lock_at(i))) i--;
  return i;
}

enum { PATIENCE_MS = 1000 }; /* a lock is held for microseconds, that of passes for milliseconds */
enum { HURRY_MS = 10 }; /* where others have interrupted holders too: these let go of nothing until they have forked */
enum { GATE_MS = 10000 }; /* its holder waits for nothing, and while a pass holds it memory is missing */

static uint64_t in_ms(unsigned ms) {
  return mu_now_ns() + (uint64_t)ms * 1000000;
}

/* Forks that have interrupted a holder, on their way. */
static _Atomic uint32_t interrupting;

static bool seize_once(int i, uint64_t end) {
  return i == PASSES ? mu_pass_seize(end) : mu_lock_seize(lock_at(i), end);
}

/* Who has interrupted a holder waits a moment only while there are others like him. */
static bool seize(struct mu_fork *f, int i, uint64_t end) {
  bool taken = seize_once(i, f->interrupts ? mu_min(end, in_ms(HURRY_MS)) : end);
  while (!taken && f->interrupts && mu_now_ns() < end && atomic_load_explicit(&interrupting, memory_order_relaxed) <= 1)
    taken = seize_once(i, mu_min(end, in_ms(HURRY_MS)));
  if (taken) f->taken |= (uint64_t)1 << i;
  return taken;
}

/*
 * Takes what can be had until then. Whoever holds a lock before one that was interrupted here may wait for that one: so
 * these are not waited for. No barrier is closed while the lock of passes is held, and without it while the gate is,
 * which is taken before anything that somebody else may need. Returns whether nothing is missing.
 */
static bool seize_all(struct mu_fork *f, uint64_t end) {
  int mine = last_of_mine();
  bool all = mine < 0;
  f->taken = 0;
  for (int i = 0; i < GATE; i++) {
    if (mu_lock_is_mine(lock_at(i))) continue;
    all &= seize(f, i, i > mine ? end : 0);
    if (i == PASSES && !(f->taken & 1)) seize(f, GATE, in_ms(GATE_MS));
  }
  return all;
}

static void let_go(const struct mu_fork *f) {
  for (int i = LOCKS - 1; i >= 0; i--)
    if (f->taken >> i & 1) mu_lock_let_go(lock_at(i));
}

/* In the child: makes every lock usable. True: nothing was half done by anybody who does not exist here. */
static bool inherit_locks(const struct mu_fork *f) {
  bool whole = true;
  for (int i = 0; i < LOCKS; i++)
    if (f->taken >> i & 1) {
      mu_lock_let_go(lock_at(i));
    } else if (mu_lock_inherit(lock_at(i))) {
      lost(i);
      whole = false;
    }
  mu_pass_forget_waiters();
  return whole;
}

/* A handler that comes before the end does not wait for what is locked for it. */
static void begin(struct mu_fork *f) {
  f->inside = mu_heap_enter();
  f->interrupts = last_of_mine() >= 0;
  if (f->interrupts) atomic_fetch_add_explicit(&interrupting, 1, memory_order_relaxed);
}

static bool inherit(const struct mu_fork *f) {
  count_fork();
  atomic_store_explicit(&interrupting, 0, memory_order_relaxed);
  bool whole = inherit_locks(f);
  mu_mesher_forget();
  mark_process();
  if (f->inside) mu_heap_leave();
  return whole;
}

/* ---- libc's fork ---------------------------------------------------------------------------------------------------
 */

/* Of the forks that this thread is at: a handler may fork where it has interrupted one. */
enum { NESTED = 4 };
static __thread MU_INITIAL_EXEC struct mu_fork libc_forks[NESTED];
static __thread MU_INITIAL_EXEC uint32_t libc_depth;

enum { TRY_MS = 5, PAUSE_NS = 1000000 };

static bool seize_for_libc(struct mu_fork *f) {
  if (f->interrupts) {
    seize_all(f, in_ms(PATIENCE_MS));
    return true;
  }
  if (seize_all(f, in_ms(TRY_MS))) return true;
  let_go(f);
  return false;
}

/*
 * libc's lock comes first. Who has interrupted a holder of ours cannot let that one go on, and needs libc's lock all
 * the same: so who has it does not wait long for ours, but lets such forks go first and begins anew.
 */
static void prepare(void) {
  MU_CHECK(libc_depth < NESTED);
  struct mu_fork *f = &libc_forks[libc_depth++];
  begin(f);
  for (;;) {
    uint32_t others = atomic_load_explicit(&interrupting, memory_order_relaxed);
    if (others && !f->interrupts) mu_futex_wait(&interrupting, others, PAUSE_NS);
    if (_IO_list_lock) _IO_list_lock();
    if (seize_for_libc(f)) return;
    if (_IO_list_unlock) _IO_list_unlock();
  }
}

static void parent(void) {
  mu_raw_fork_parent(&libc_forks[--libc_depth]);
  if (_IO_list_unlock) _IO_list_unlock();
}

static void child(void) {
  struct mu_fork *f = &libc_forks[--libc_depth];
  if (_IO_list_resetlock) _IO_list_resetlock(); /* libc has done so only if there were several threads */
  bool whole = inherit(f);
  if (!f->interrupts) mu_registry_forget_others();
  if (!whole) mu_mesher_stay_away();
}

/* glibc's own name for it: pthread_atfork is linked into the library, at the end, on a page that nothing else needs.
 * The library is never unloaded, so its handlers belong to nobody who is. */
extern int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void *) __attribute__((weak));

MU_AT_START void mu_fork_init(void) {
  if (__register_atfork)
    __register_atfork(prepare, parent, child, NULL);
  else
    pthread_atfork(prepare, parent, child);
}

/* From now on mu_check_forked notices. */
MU_AT_START void mu_heap_made(void) {
  int err;
  same_process = mu_mmap(NULL, mu_arena.page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &err);
  if (same_process && mu_madvise(same_process, mu_arena.page_size, MADV_WIPEONFORK) < 0) same_process = NULL;
  mark_process();
}

/* ---- forks that run no handlers ------------------------------------------------------------------------------------
 */

bool mu_locks_seize(struct mu_fork *f) {
  return seize_all(f, in_ms(PATIENCE_MS));
}

void mu_locks_let_go(const struct mu_fork *f) {
  let_go(f);
}

void mu_raw_fork_prepare(struct mu_fork *f) {
  f->others = mu_registry_has_others();
  begin(f);
  seize_all(f, in_ms(PATIENCE_MS));
}

void mu_raw_fork_parent(struct mu_fork *f) {
  count_fork();
  let_go(f);
  if (f->inside) mu_heap_leave();
  if (f->interrupts) atomic_fetch_sub_explicit(&interrupting, 1, memory_order_relaxed);
}

/* Vectors of other threads are left alone: who forks so may have interrupted anything. A mesher is a thread of libc's,
 * whose own locks nobody has made new here, unless libc did, or there is nobody who can have held them. */
void mu_raw_fork_child(struct mu_fork *f, bool by_libc) {
  if (!inherit(f) || (f->others && !by_libc)) mu_mesher_stay_away();
}

MU_AT_START void mu_check_forked(void) {
  if (MU_LIKELY(!same_process || *same_process)) return;
  struct mu_fork unseen = {.others = mu_registry_has_others()};
  bool barrier_was_open = atomic_load_explicit(&mu_gate.word, memory_order_relaxed) == 0;
  mu_raw_fork_child(&unseen, false);
  mu_log(
      barrier_was_open
          ? "this process was forked by a system call that did not go through libc: had a pass been under way, "
            "objects of one run would read as zeros here"
          : "this process was forked by a system call that did not go through libc, in the middle of a pass: objects "
            "of one run read as zeros here");
}
