/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A thread's own part: a ShuffleVector of pointers to free slots for each size class. The hot path of malloc and free
 * is here: pop, push, nothing shared.
 */
#ifndef MU_THREAD_LOCAL_HEAP_H
#define MU_THREAD_LOCAL_HEAP_H

#include "src/global_heap.h"
#include "src/nested.h"

struct mu_shuffle_vector {
  void **top;           /* [bottom, top) are free slots of this thread's */
  void **bottom, **end; /* end == bottom: push nothing */
  uint32_t batch;       /* slots claimed by the next refill: doubles, so that who needs few touches few pages */
  uint32_t limit;       /* end - bottom: doubles too, as long as the threads together do not keep too much */
};
_Static_assert(sizeof(struct mu_shuffle_vector) == 32, "a power of two, so that vectors are found by a shift");

struct mu_thread_local_heap {
  struct mu_shuffle_vector vectors[MU_CLASSES]; /* [0]: always empty, without room */
  struct mu_thread_local_heap *next, *prev;     /* registry, under its lock */
  uint64_t rng;
  int64_t until_sample; /* profiling: bytes to the next sample, 0 before the first is chosen */
  bool profiling;       /* this thread is taking one, or writing them */
  size_t allowed;       /* bytes that its vectors may keep beyond what each may at first */
  void *slots[];        /* room of the vectors, side by side: of their first limits, then of their last */
};

/* Never NULL: a thread that has no heap yet, or none any more, has the empty one, whose vectors send both malloc and
 * free the slow way. */
extern __thread MU_INITIAL_EXEC struct mu_thread_local_heap *mu_tlh;
/* The same for the slow ways: differs while every call is to be seen. */
extern __thread MU_INITIAL_EXEC struct mu_thread_local_heap *mu_own_heap;

/* From now on every malloc and free of all threads goes the slow way. Once, before there are other threads. */
void mu_watch_calls(void);

/*
 * Around whatever a slow way does with the heap. Meanwhile the thread's fast ways find an empty heap: so what a signal
 * handler asks for comes to mu_heap_enter, which says false, as the thread is in the heap already (see nested.h).
 * Between a thread and its handlers nothing but the compiler changes the order.
 */
extern __thread MU_INITIAL_EXEC uintptr_t mu_inside;                     /* the frame of whoever is; 0: nobody */
extern __thread MU_INITIAL_EXEC struct mu_thread_local_heap *mu_outside; /* mu_tlh when nobody is */
extern struct mu_thread_local_heap mu_hidden_heap;
bool mu_has_jumped_out(uintptr_t here);

static inline void mu_set_inside(uintptr_t frame) {
  atomic_signal_fence(memory_order_seq_cst);
  mu_inside = frame;
  atomic_signal_fence(memory_order_seq_cst);
  mu_tlh = frame ? &mu_hidden_heap : mu_outside;
  atomic_signal_fence(memory_order_seq_cst);
}

static inline bool mu_heap_enter(void) {
  uintptr_t here = (uintptr_t)__builtin_frame_address(0);
  if (MU_UNLIKELY(mu_inside) && !mu_has_jumped_out(here)) return false;
  mu_set_inside(here);
  return true;
}

static inline void mu_heap_leave(void) {
  mu_set_inside(0);
  if (MU_UNLIKELY(atomic_load_explicit(&mu_nested_deferred, memory_order_relaxed) != NULL)) mu_nested_settle();
}

/* Around calls of libc in the midst of it that may allocate: nothing is half done then. */
static inline uintptr_t mu_heap_step_out(void) {
  uintptr_t was = mu_inside;
  mu_set_inside(0);
  return was;
}

static inline void mu_heap_step_in(uintptr_t was_inside) {
  mu_set_inside(was_inside);
}

/* Whether the calling thread has a heap of its own: not before its first call, nor once it has ended. */
bool mu_has_heap(void);
/* Gives it one, if it has none. False when it must do without. */
bool mu_thread_start(void);

/* Makes the heap on the first call of all. False when not even a minimal reservation can be had, or when this program
 * is left alone (aside.h). */
bool mu_heap_ready(void);
/* Called before the heap is made, once or more often, by one thread at a time. Where it is linked: not in unit tests.
 */
void mu_before_heap(void) __attribute__((weak));
/* Called when it has been made, under the lock of the registry. */
void mu_heap_made(void) __attribute__((weak));
/* Called when the program's first thread has ended and others may go on. */
void mu_main_thread_ended(void) __attribute__((weak));

/* The slow ways: a vector that is empty, a vector that is full. */
void *mu_malloc_refill(unsigned size_class);
void mu_free_overflow(void *p, unsigned size_class);

/* Gives back everything in this thread's vectors. */
void mu_thread_flush(void);

/* Fork. */
extern struct mu_lock mu_registry;
/* Whether a thread but the calling one has a heap; of a moment, without the lock. */
bool mu_registry_has_others(void);
/* In a forked child, where another thread was at work under the lock: the heaps of others are left alone. */
void mu_registry_lost(void);
/* In a forked child: the heaps of threads that do not exist here are free; their slots stay claimed. */
void mu_registry_forget_others(void);

static inline uint32_t mu_vector_count(const struct mu_shuffle_vector *v) {
  return (uint32_t)(v->top - v->bottom);
}

/* NULL when it is empty. The slot may be marked (mu_is_fresh), if its class is of a page and more. */
static inline void *mu_vector_pop(struct mu_shuffle_vector *v) {
  void **top = v->top;
  if (MU_UNLIKELY(top == v->bottom)) return NULL;
  void *slot = top[-1];
  atomic_signal_fence(memory_order_seq_cst); /* before its place is free: a handler in between may put another there */
  v->top = top - 1;
  if (!slot) __builtin_unreachable(); /* saves the caller's test */
  return slot;
}

/* False when it is full. */
static inline bool mu_vector_push(struct mu_shuffle_vector *v, void *p) {
  void **top = v->top;
  if (MU_UNLIKELY(top == v->end)) return false;
  *top = p;
  atomic_signal_fence(memory_order_release); /* the slot before the top, for a fork in between */
  v->top = top + 1;
  return true;
}

/* Where the vector is, computed once. */
static inline struct mu_shuffle_vector *mu_vector_of(unsigned c) {
  struct mu_shuffle_vector *v = (struct mu_shuffle_vector *)(void *)((char *)mu_tlh + c * sizeof *v);
  __asm__("" : "+r"(v));
  return v;
}

/* Also false when p lies on top already, or seems to: what is below an empty vector is not its own. */
static inline bool mu_vector_push_new(struct mu_shuffle_vector *v, void *p) {
  void **top = v->top;
  return MU_LIKELY(top != v->end) && MU_LIKELY(top[-1] != p) && mu_vector_push(v, p);
}

#endif
