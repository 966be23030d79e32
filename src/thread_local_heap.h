/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread's own part: a ShuffleVector of pointers to free slots for each size class. The hot path of malloc and free
 * is here: pop, push, nothing shared.
 */
#ifndef MU_THREAD_LOCAL_HEAP_H
#define MU_THREAD_LOCAL_HEAP_H

#include "src/global_heap.h"

/* A power of two, so that vectors are found by a shift. */
struct mu_shuffle_vector {
  uint32_t count, cap; /* slots[0..count) are free slots of this thread's; cap 0: push nothing */
  void *slots[MU_VECTOR_ROOM];
};
_Static_assert(sizeof(struct mu_shuffle_vector) == 2048, "a power of two");

struct mu_thread_local_heap {
  struct mu_shuffle_vector vectors[MU_CLASSES]; /* [0]: always empty, cap 0 */
  struct mu_thread_local_heap *next, *prev;     /* registry, under its lock */
  uint64_t rng;
} __attribute__((aligned(2048)));

/* Never NULL: a thread that has no heap yet, or none any more, has the empty one, whose vectors send both malloc and
 * free the slow way. */
extern __thread MU_INITIAL_EXEC struct mu_thread_local_heap *mu_tlh;

/* Registers the fork handlers and the thread-exit key. Once, after libc is up. */
void mu_threads_init(void);

/* Makes the heap on the first call of all. False when not even a minimal reservation can be had. */
bool mu_heap_ready(void);

/* The slow ways: a vector that is empty, a vector that is full. */
void *mu_malloc_refill(unsigned size_class);
void mu_free_overflow(void *p, unsigned size_class);

/* Gives back everything in this thread's vectors. */
void mu_thread_flush(void);

/* Fork. */
void mu_registry_lock(void);
void mu_registry_unlock(void);
void mu_registry_renew(void);
/* In a forked child: the heaps of threads that do not exist here are free; their slots stay claimed. */
void mu_registry_forget_others(void);

static inline void *mu_vector_pop(struct mu_shuffle_vector *v) {
  uint32_t n = v->count;
  if (MU_UNLIKELY(n == 0)) return NULL;
  v->count = n - 1;
  return v->slots[n - 1];
}

static inline bool mu_vector_push(struct mu_shuffle_vector *v, void *p) {
  uint32_t n = v->count;
  if (MU_UNLIKELY(n >= v->cap)) return false;
  v->slots[n] = p;
  atomic_signal_fence(memory_order_release); /* the slot before the count, for a fork in between */
  v->count = n + 1;
  return true;
}

#endif
