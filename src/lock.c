/* SPDX-License-Identifier: Apache-2.0 */
#include "src/lock.h"
#include "src/log.h"
#include "src/sys.h"

enum { SPINS = 100 };         /* holders keep a lock for well under a microsecond; no derivation beyond that */
enum { LOOK_NS = 100000000 }; /* should the kernel have refused a wake */

__thread MU_INITIAL_EXEC uint32_t mu_thread_number;

/* They are used up after two billion threads; then the first are used again. A handler that interrupts this may take
 * one too: what it locked it has unlocked before we go on. */
MU_AT_START uint32_t mu_thread_number_new(void) {
  MU_EARLY static _Atomic uint32_t last;
  uint32_t n;
  do n = (atomic_fetch_add_explicit(&last, 1, memory_order_relaxed) + 1) & ~MU_LOCK_WAITED;
  while (!n);
  return mu_thread_number = n;
}

static bool try_once(struct mu_lock *lock, uint32_t as) {
  uint32_t free = 0;
  return atomic_load_explicit(&lock->word, memory_order_relaxed) == 0 &&
         atomic_compare_exchange_strong_explicit(&lock->word, &free, as, memory_order_acquire, memory_order_relaxed);
}

/* Marks the lock as waited for, and sleeps while it is held, at most so long. */
static void sleep_on(struct mu_lock *lock, int64_t ns) {
  uint32_t seen = atomic_load_explicit(&lock->word, memory_order_relaxed);
  if (!seen) return;
  if (!(seen & MU_LOCK_WAITED) && !atomic_compare_exchange_strong_explicit(&lock->word, &seen, seen | MU_LOCK_WAITED,
                                                                           memory_order_relaxed, memory_order_relaxed))
    return;
  mu_futex_wait(&lock->word, seen | MU_LOCK_WAITED, ns);
}

void mu_lock_slow(struct mu_lock *lock, uint32_t self) {
  for (int i = 0; i < SPINS; i++) {
    if (try_once(lock, self)) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  if (mu_lock_is_mine(lock))
    mu_die("malloc or free in a signal handler that has interrupted them: it would wait for ever");
  /* Who has slept may not be the only one: it takes the lock as one that is waited for. */
  while (!try_once(lock, self | MU_LOCK_WAITED)) sleep_on(lock, LOOK_NS);
}

bool mu_lock_seize(struct mu_lock *lock, uint64_t end) {
  uint32_t self = mu_lock_self();
  if (try_once(lock, self)) return true;
  for (uint64_t now = mu_now_ns(); now < end; now = mu_now_ns()) {
    sleep_on(lock, (int64_t)(end - now));
    if (try_once(lock, self | MU_LOCK_WAITED)) return true;
  }
  /* The wake that ended this wait, if one did, was for whoever waits. */
  mu_futex_wake(&lock->word, 1);
  return false;
}

void mu_lock_let_go(struct mu_lock *lock) {
  if (atomic_exchange_explicit(&lock->word, 0, memory_order_release) & MU_LOCK_WAITED) mu_unlock_slow(lock);
}

bool mu_lock_inherit(struct mu_lock *lock) {
  uint32_t word = atomic_load_explicit(&lock->word, memory_order_relaxed);
  bool mine = mu_lock_is_mine(lock);
  atomic_store_explicit(&lock->word, mine ? mu_thread_number : 0, memory_order_relaxed);
  return word && !mine;
}

void mu_unlock_slow(struct mu_lock *lock) {
  mu_futex_wake(&lock->word, 1);
}

#ifdef MU_DEBUG
static __thread MU_INITIAL_EXEC uint32_t held[160];
static __thread MU_INITIAL_EXEC uint32_t held_count;

void mu_lock_order_check(const struct mu_lock *lock) {
  MU_CHECK(held_count < 160);
  MU_CHECK(held_count == 0 || held[held_count - 1] < lock->rank);
}

void mu_lock_order_push(const struct mu_lock *lock) {
  held[held_count++] = lock->rank;
}

void mu_lock_order_pop(const struct mu_lock *lock) {
  uint32_t i = held_count;
  while (i > 0 && held[i - 1] != lock->rank) i--;
  MU_CHECK(i > 0);
  for (; i < held_count; i++) held[i - 1] = held[i];
  held_count--;
}
#endif
