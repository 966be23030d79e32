/* SPDX-License-Identifier: Apache-2.0 */
#include "src/thread_local_heap.h"
#include "src/aside.h"
#include "src/fork.h"
#include "src/log.h"
#include "src/options.h"
#include "src/rng.h"
#include "src/sys.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>

enum { FIRST_BATCH = 8 };

/*
 * What sleeping threads have in their vectors is of no use to anybody, and pins spans. So a vector begins small, and
 * grows when its thread needs it, as long as all threads together may keep no more than FREE_BYTES and a sixteenth of
 * the heap beyond what they begin with.
 */
enum { FIRST_LIMIT = 8, FIRST_LIMIT_BYTES = 1024, FREE_BYTES = 4 << 20, HEAP_SHARE = 16 };

MU_EARLY static _Atomic size_t allowed_bytes; /* sum over heaps in use */

MU_EARLY enum mu_aside mu_aside;

static struct mu_thread_local_heap empty_heap;
/* A thread that has ended (its key's destructor has run) and still calls: served slot by slot, keeping nothing. */
static struct mu_thread_local_heap ended_heap;
MU_EARLY static bool watched; /* every call is to be seen: the fast ways find nothing, as while somebody is inside */
__thread MU_INITIAL_EXEC struct mu_thread_local_heap *mu_tlh = &empty_heap, *mu_own_heap = &empty_heap;

struct mu_lock mu_registry = MU_LOCK_INIT(MU_RANK_REGISTRY);
MU_EARLY static struct {
  struct mu_thread_local_heap *in_use, *free;
  uint64_t seeds;
  _Atomic uint32_t heap_ready; /* 0 not yet, 1 yes */
  bool key_ready;
  pthread_key_t key;
} registry;

static void thread_ended(void *heap);

/* The first call of all makes the heap. */
MU_AT_START static bool heap_ready(void) {
  /* acquire: pairs with the release below; the arena is seen complete */
  if (MU_LIKELY(atomic_load_explicit(&registry.heap_ready, memory_order_acquire))) return true;
  mu_lock_take(&mu_registry);
  bool ready = atomic_load_explicit(&registry.heap_ready, memory_order_relaxed);
  if (mu_before_heap && !ready) mu_before_heap();
  if (!ready && !mu_aside && (ready = mu_arena_init())) {
    mu_global_heap_init();
    const void *random = (const void *)getauxval(AT_RANDOM);
    if (random) memcpy(&registry.seeds, random, sizeof registry.seeds);
    registry.seeds |= 1;
    registry.key_ready = pthread_key_create(&registry.key, thread_ended) == 0;
    if (mu_heap_made) mu_heap_made();
    atomic_store_explicit(&registry.heap_ready, 1, memory_order_release);
  }
  mu_lock_release(&mu_registry);
  return ready;
}

MU_AT_START bool mu_heap_ready(void) {
  return heap_ready();
}

/* Where each free is to be checked at once, vectors have no room: then each goes to the bitmap of its span. */
static size_t room_of(unsigned c) {
  return mu_options.check ? 0 : mu_classes[c].cap;
}

static uint32_t first_limit(unsigned c) {
  size_t few = mu_max(FIRST_LIMIT_BYTES / mu_classes[c].size, 1);
  return (uint32_t)mu_min(mu_min(few, FIRST_LIMIT), room_of(c));
}

MU_AT_START static struct mu_thread_local_heap *make_heap(void) {
  size_t room = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++) room += first_limit(c) + room_of(c);
  return mu_meta_alloc(sizeof(struct mu_thread_local_heap) + room * sizeof(void *));
}

/* All vectors are empty, and as small as they begin. */
MU_AT_START static void begin_small(struct mu_thread_local_heap *t) {
  void **at = t->slots;
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    uint32_t limit = first_limit(c);
    t->vectors[c] = (struct mu_shuffle_vector){
        .top = at,
        .bottom = at,
        .end = at + limit,
        .batch = (uint32_t)mu_min(FIRST_BATCH, mu_classes[c].batch),
        .limit = limit,
    };
    at += limit;
  }
}

/* Where the vector stands that has outgrown its first room. */
MU_AT_START static void **last_room(struct mu_thread_local_heap *t, unsigned c) {
  void **at = t->slots;
  for (unsigned i = 1; i < MU_CLASSES; i++) at += first_limit(i) + (i < c ? room_of(i) : 0);
  return at;
}

MU_AT_START static bool allow(struct mu_thread_local_heap *t, size_t bytes) {
  size_t most = FREE_BYTES + (mu_arena_limit() << mu_arena.page_shift) / HEAP_SHARE;
  /* relaxed: threads that grow at once may exceed it by what each takes */
  if (atomic_load_explicit(&allowed_bytes, memory_order_relaxed) + bytes > most) return false;
  atomic_fetch_add_explicit(&allowed_bytes, bytes, memory_order_relaxed);
  t->allowed += bytes;
  return true;
}

/* Twice the room for a vector, if that may be. */
MU_AT_START static MU_NOINLINE bool widen(struct mu_thread_local_heap *t, unsigned c) {
  struct mu_shuffle_vector *v = &t->vectors[c];
  uint32_t limit = (uint32_t)mu_min(v->limit * 2, room_of(c)), count = mu_vector_count(v);
  if (limit == v->limit || !allow(t, (size_t)(limit - v->limit) * mu_classes[c].size)) return false;
  if (v->limit == first_limit(c)) {
    void **room = last_room(t, c);
    memcpy(room, v->bottom, count * sizeof *room);
    v->bottom = room;
    v->top = room + count;
  }
  v->limit = limit;
  v->end = v->bottom + limit;
  return true;
}

MU_AT_START static struct mu_thread_local_heap *take_heap(void) {
  mu_lock_take(&mu_registry);
  struct mu_thread_local_heap *t = registry.free;
  if (t)
    registry.free = t->next;
  else
    t = make_heap();
  if (t) {
    begin_small(t);
    t->rng = mu_rng_next(&registry.seeds);
    t->prev = NULL;
    t->next = registry.in_use;
    if (t->next) t->next->prev = t;
    registry.in_use = t;
  }
  mu_lock_release(&mu_registry);
  return t;
}

static void flush(struct mu_thread_local_heap *t, void (*give)(unsigned, void *const *, uint32_t)) {
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    struct mu_shuffle_vector *v = &t->vectors[c];
    uint32_t n = mu_vector_count(v);
    v->top = v->bottom;
    if (n) give(c, v->bottom, n);
  }
}

MU_AT_START bool mu_has_heap(void) {
  return mu_own_heap != &empty_heap && mu_own_heap != &ended_heap;
}

/* ---- inside --------------------------------------------------------------------------------------------------------
 */

__thread MU_INITIAL_EXEC uintptr_t mu_inside;
__thread MU_INITIAL_EXEC struct mu_thread_local_heap *mu_outside = &empty_heap;
struct mu_thread_local_heap mu_hidden_heap;

MU_AT_START static void set_heap(struct mu_thread_local_heap *t) {
  mu_own_heap = t;
  mu_outside = watched ? &mu_hidden_heap : t;
  mu_set_inside(mu_inside);
}

/* Whoever was inside has left by a jump out of a handler: his frame is gone, as this one is above it on the same stack.
 */
bool mu_has_jumped_out(uintptr_t here) {
  stack_t alternate;
  if (here <= mu_inside || mu_sys_call(MU_SYS_sigaltstack, 0, (long)&alternate, 0, 0, 0, 0) < 0) return false;
  return !(alternate.ss_flags & SS_ONSTACK);
}

/* ---- heaps of threads ----------------------------------------------------------------------------------------------
 */

void mu_watch_calls(void) {
  watched = true;
  set_heap(mu_own_heap);
}

void mu_thread_flush(void) {
  if (!mu_has_heap() || !mu_heap_enter()) return;
  flush(mu_own_heap, mu_give_back);
  mu_heap_leave();
}

static void retire(struct mu_thread_local_heap *t) {
  atomic_fetch_sub_explicit(&allowed_bytes, t->allowed, memory_order_relaxed);
  t->allowed = 0;
  mu_lock_take(&mu_registry);
  if (t->prev)
    t->prev->next = t->next;
  else
    registry.in_use = t->next;
  if (t->next) t->next->prev = t->prev;
  t->next = registry.free;
  registry.free = t;
  mu_lock_release(&mu_registry);
}

static void thread_ended(void *heap) {
  struct mu_thread_local_heap *t = heap;
  bool entered = mu_heap_enter();
  set_heap(&ended_heap);
  flush(t, mu_put);
  retire(t);
  if (entered) mu_heap_leave();
  mu_note_activity();
  bool main_thread = mu_sys_call(MU_SYS_gettid, 0, 0, 0, 0, 0, 0) == mu_pid();
  if (mu_main_thread_ended && main_thread) mu_main_thread_ended();
}

MU_AT_START bool mu_thread_start(void) {
  if (mu_has_heap()) return true;
  if (mu_own_heap == &ended_heap || !heap_ready()) return false;
  struct mu_thread_local_heap *t = take_heap();
  if (!t) return false;
  set_heap(t);
  /* The destructor runs when the thread ends. May allocate: the heap is set, so that is an ordinary call. */
  uintptr_t was = mu_heap_step_out();
  if (registry.key_ready) pthread_setspecific(registry.key, t);
  mu_heap_step_in(was);
  return true;
}

/* A thread without a heap of its own takes slot by slot. */
static void *claim_one(unsigned c) {
  void *one = NULL;
  uint64_t rng = (uintptr_t)&one | 1;
  bool grown = false;
  if (!heap_ready() || !mu_claim(c, &one, 1, &rng, &grown)) return NULL;
  mu_after_claim(grown);
  return one;
}

MU_AT_START void *mu_malloc_refill(unsigned c) {
  mu_check_forked();
  if (MU_UNLIKELY(!mu_has_heap()) && !mu_thread_start()) return claim_one(c);
  struct mu_shuffle_vector *v = &mu_own_heap->vectors[c];
  if (MU_UNLIKELY(v->end == v->bottom)) return claim_one(c);
  void *p = mu_vector_pop(v); /* a thread's start may have allocated, and filled it */
  if (p) return p;
  bool grown;
  if (v->batch > v->limit) widen(mu_own_heap, c);
  uint32_t batch = (uint32_t)mu_min(v->batch, v->limit), most = (uint32_t)mu_max((v->limit + 1) / 2, batch);
  v->top = v->bottom + mu_take(c, v->bottom, most, batch, &mu_own_heap->rng, &grown);
  v->batch = (uint32_t)mu_min(batch * 2, mu_classes[c].batch);
  p = mu_vector_pop(v);
  /* Only now that the vector is whole again: what is called may allocate. */
  mu_after_claim(grown);
  return p;
}

MU_AT_START void mu_free_overflow(void *p, unsigned c) {
  mu_check_forked();
  if (mu_own_heap == &empty_heap) mu_thread_start();
  struct mu_thread_local_heap *t = mu_own_heap;
  struct mu_shuffle_vector *v = &t->vectors[c];
  if (mu_vector_push(v, p)) return;
  if (v->end == v->bottom) {
    mu_give_back(c, &p, 1);
    return;
  }
  if (v->limit < mu_classes[c].cap && widen(t, c)) {
    mu_vector_push(v, p);
    return;
  }
  /* The older half goes: what was freed last is warm. A fork in between, by another thread, forgets this vector. */
  uint32_t half = (mu_vector_count(v) + 1) / 2, kept = mu_vector_count(v) - half;
  mu_put(c, v->bottom, half);
  memmove(v->bottom, v->bottom + half, kept * sizeof *v->bottom);
  v->bottom[kept] = p;
  v->top = v->bottom + kept + 1;
  mu_note_activity(); /* may allocate: the vector is whole again */
}

void mu_registry_lost(void) {
  registry.in_use = registry.free = NULL;
  if (!mu_has_heap()) return;
  mu_own_heap->prev = mu_own_heap->next = NULL;
  registry.in_use = mu_own_heap;
}

bool mu_registry_has_others(void) {
  const struct mu_thread_local_heap *t = registry.in_use;
  return t && (t != mu_own_heap || t->next);
}

/* What other threads had in their vectors stays claimed for good: a slot taken from a vector that was copied before may
 * be in use in memory that was copied after. Their heaps serve new threads. */
void mu_registry_forget_others(void) {
  struct mu_thread_local_heap *t = registry.in_use, *next;
  for (; t; t = next) {
    next = t->next;
    if (t == mu_own_heap) continue;
    for (unsigned c = 1; c < MU_CLASSES; c++) t->vectors[c].top = t->vectors[c].bottom;
    retire(t);
  }
}
