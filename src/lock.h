/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A small mutex on a futex, with its rank in the lock order. It knows who holds it: whoever forks in a signal handler
 * may have interrupted a holder, who goes on afterwards in both processes. Works before main, never allocates.
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
  MU_RANK_LEAF, /* of these but one is held at a time, but in fork */
  MU_RANK_TABLES,
  MU_RANK_PROFILE,
  MU_RANK_GATE,
};

struct mu_lock {
  _Atomic uint32_t word; /* 0: free; else the holder's number, and MU_LOCK_WAITED if somebody waits */
  uint32_t rank;
};

#define MU_LOCK_INIT(r)                                                                                                \
  { .word = 0, .rank = (r) }
#define MU_LOCK_WAITED ((uint32_t)1 << 31)

/* The calling thread's number, which no other thread of the process has; 0 until it first takes a lock. A forked child
 * goes on with that of the thread it is a copy of. */
extern __thread MU_INITIAL_EXEC uint32_t mu_thread_number;
uint32_t mu_thread_number_new(void);

void mu_lock_slow(struct mu_lock *lock, uint32_t self);
void mu_unlock_slow(struct mu_lock *lock);
void mu_lock_order_check(const struct mu_lock *lock);
void mu_lock_order_push(const struct mu_lock *lock);
void mu_lock_order_pop(const struct mu_lock *lock);

static inline uint32_t mu_lock_self(void) {
  return MU_LIKELY(mu_thread_number) ? mu_thread_number : mu_thread_number_new();
}

static inline void mu_lock_take(struct mu_lock *lock) {
#ifdef MU_DEBUG
  mu_lock_order_check(lock);
#endif
  uint32_t free = 0, self = mu_lock_self(); /* acquire: what the last holder wrote is seen */
  if (!atomic_compare_exchange_strong_explicit(&lock->word, &free, self, memory_order_acquire, memory_order_relaxed))
    mu_lock_slow(lock, self);
#ifdef MU_DEBUG
  mu_lock_order_push(lock); /* only now: a handler that forks where this waits holds nothing */
#endif
}

static inline void mu_lock_release(struct mu_lock *lock) {
#ifdef MU_DEBUG
  mu_lock_order_pop(lock);
#endif
  /* release: the next holder sees what this one wrote */
  if (atomic_exchange_explicit(&lock->word, 0, memory_order_release) & MU_LOCK_WAITED) mu_unlock_slow(lock);
}

/* Whether the calling thread holds it: in a signal handler, what the handler has interrupted does. */
static inline bool mu_lock_is_mine(const struct mu_lock *lock) {
  /* relaxed: nobody else can make this true or false */
  uint32_t word = atomic_load_explicit(&lock->word, memory_order_relaxed);
  return word && (word & ~MU_LOCK_WAITED) == mu_thread_number;
}

/* For forks and others that may come while the thread holds any locks: gives up at `end` (mu_now_ns); no order is
 * checked. What was taken so is given back by mu_lock_let_go. */
bool mu_lock_seize(struct mu_lock *lock, uint64_t end);
void mu_lock_let_go(struct mu_lock *lock);

/* In a forked child. One that the thread holds is kept: it goes on where it was interrupted. Any other is made new.
 * True: somebody who does not exist here was at work under it. */
bool mu_lock_inherit(struct mu_lock *lock);

#endif
