/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small mutex on a futex (three states, after U. Drepper, "Futexes are tricky"), with its rank in the lock order.
 * Works before main, never allocates, can be made new in a forked child.
 */
#ifndef MU_LOCK_H
#define MU_LOCK_H

#include "src/common.h"

/* A thread may take a lock only of a higher rank than any it holds. */
enum mu_rank {
  MU_RANK_PASS = 1,
  MU_RANK_REGISTRY,
  MU_RANK_CLASS, /* in fork: class by class, ascending: rank + class */
  MU_RANK_EXTENT = 128,
  MU_RANK_LEAF,
};

struct mu_lock {
  _Atomic uint32_t word; /* 0 free, 1 held, 2 held and waited for */
  uint32_t rank;
};

#define MU_LOCK_INIT(r)                                                                                                \
  { .word = 0, .rank = (r) }

void mu_lock_slow(struct mu_lock *lock);
void mu_unlock_slow(struct mu_lock *lock);
void mu_lock_order_push(const struct mu_lock *lock);
void mu_lock_order_pop(const struct mu_lock *lock);

static inline void mu_lock_take(struct mu_lock *lock) {
#ifdef MU_DEBUG
  mu_lock_order_push(lock);
#endif
  uint32_t free = 0; /* acquire: what the last holder wrote is seen */
  if (!atomic_compare_exchange_strong_explicit(&lock->word, &free, 1, memory_order_acquire, memory_order_relaxed))
    mu_lock_slow(lock);
}

static inline void mu_lock_release(struct mu_lock *lock) {
#ifdef MU_DEBUG
  mu_lock_order_pop(lock);
#endif
  /* release: the next holder sees what this one wrote */
  if (atomic_exchange_explicit(&lock->word, 0, memory_order_release) == 2) mu_unlock_slow(lock);
}

/* Gives up after about `ms` milliseconds. */
bool mu_lock_try(struct mu_lock *lock, unsigned ms);

static inline void mu_lock_renew(struct mu_lock *lock) {
  atomic_store_explicit(&lock->word, 0, memory_order_relaxed);
}

#endif
