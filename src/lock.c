/* SPDX-License-Identifier: Apache-2.0 */
#include "src/lock.h"
#include "src/sys.h"

enum { SPINS = 100 }; /* holders keep a lock for well under a microsecond; no derivation beyond that */

void mu_lock_slow(struct mu_lock *lock) {
  for (int i = 0; i < SPINS; i++) {
    uint32_t free = 0;
    if (atomic_load_explicit(&lock->word, memory_order_relaxed) == 0 &&
        atomic_compare_exchange_weak_explicit(&lock->word, &free, 1, memory_order_acquire, memory_order_relaxed))
      return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  while (atomic_exchange_explicit(&lock->word, 2, memory_order_acquire) != 0) mu_futex_wait(&lock->word, 2, -1);
}

bool mu_lock_try(struct mu_lock *lock, unsigned ms) {
  uint64_t now = mu_now_ns(), end = now + ms * 1000000ULL;
  /* A wake may have been meant for somebody else: so whenever this thread has waited it marks the lock as waited for,
   * whether it takes it or gives up. */
  while (atomic_exchange_explicit(&lock->word, 2, memory_order_acquire) != 0) {
    if (now >= end) return false;
    mu_futex_wait(&lock->word, 2, (int64_t)(end - now));
    now = mu_now_ns();
  }
#ifdef MU_DEBUG
  mu_lock_order_push(lock);
#endif
  return true;
}

void mu_unlock_slow(struct mu_lock *lock) {
  mu_futex_wake(&lock->word, 1);
}

#ifdef MU_DEBUG
static __thread MU_INITIAL_EXEC uint32_t held[160];
static __thread MU_INITIAL_EXEC uint32_t held_count;

void mu_lock_order_push(const struct mu_lock *lock) {
  MU_CHECK(held_count < 160);
  MU_CHECK(held_count == 0 || held[held_count - 1] < lock->rank);
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
