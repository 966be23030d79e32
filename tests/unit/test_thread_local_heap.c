/* SPDX-License-Identifier: Apache-2.0 */
#include "src/rng.h"
#include "src/sys.h"
#include "src/thread_local_heap.h"
#include "tests/unit/pages.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Every assertion that Criterion counts costs a message: loops use this one. Main thread only. */
#define CHECK(condition, format, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) cr_assert_fail("%s: " format, #condition, ##__VA_ARGS__);                                        \
  } while (0)

/* malloc and free of a class, as entry.c has them. */
static void *get_slot(unsigned c) {
  void *slot = mu_vector_pop(&mu_tlh->vectors[c]);
  return slot ? slot : mu_malloc_refill(c);
}

static void *get(unsigned c) {
  return mu_unmarked(get_slot(c));
}

static void put(void *p, unsigned c) {
  if (!mu_vector_push(&mu_tlh->vectors[c], p)) mu_free_overflow(p, c);
}

static size_t live(unsigned c) {
  return mu_class_live(&mu_class_heaps[c]);
}
static uint32_t kept(unsigned c) {
  return mu_vector_count(&mu_tlh->vectors[c]);
}

static void validate(void) {
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    mu_class_lock(c);
    mu_class_validate(c);
    mu_class_unlock(c);
  }
}

TestSuite(thread_local_heap, .timeout = 30);

/* ---- a vector ---- */

Test(thread_local_heap, a_vector_is_a_stack_of_so_many_slots) {
  void *room[6] = {NULL};
  struct mu_shuffle_vector v = {.top = room + 1, .bottom = room + 1, .end = room + 6};
  int slots[6];
  cr_assert_null(mu_vector_pop(&v));
  for (int i = 0; i < 5; i++) cr_assert(mu_vector_push(&v, &slots[i]));
  cr_assert_not(mu_vector_push(&v, &slots[5]));
  cr_assert_eq(mu_vector_count(&v), 5);
  for (int i = 4; i >= 0; i--) cr_assert_eq(mu_vector_pop(&v), &slots[i]);
  cr_assert_null(mu_vector_pop(&v));
  cr_assert_eq(mu_vector_count(&v), 0);
}

Test(thread_local_heap, a_vector_without_room_takes_nothing) {
  struct mu_shuffle_vector v = {.top = NULL};
  int slot;
  cr_assert_not(mu_vector_push(&v, &slot));
  cr_assert_not(mu_vector_push_new(&v, &slot));
  cr_assert_null(mu_vector_pop(&v));
}

Test(thread_local_heap, what_lies_on_top_is_not_pushed_again) {
  void *room[6] = {NULL};
  struct mu_shuffle_vector v = {.top = room + 1, .bottom = room + 1, .end = room + 6};
  int one, other;
  cr_assert(mu_vector_push_new(&v, &one));
  cr_assert_not(mu_vector_push_new(&v, &one));
  cr_assert(mu_vector_push_new(&v, &other));
  cr_assert(mu_vector_push_new(&v, &one), "only the last one is looked at");
  cr_assert_eq(mu_vector_count(&v), 3);
}

Test(thread_local_heap, nobody_has_a_heap_before_the_first_call) {
  for (unsigned c = 0; c < MU_CLASSES; c++) {
    cr_assert_eq(mu_tlh->vectors[c].end, mu_tlh->vectors[c].bottom);
    cr_assert_eq(kept(c), 0);
  }
}

/* malloc and free as entry.c has them: the fast way, then the slow one. */
static void *watched_get(unsigned c) {
  cr_assert_null(mu_vector_pop(mu_vector_of(c)), "class %u: the fast way must have nothing", c);
  return mu_unmarked(mu_malloc_refill(c));
}

static void *watched_thread(void *unused) {
  (void)unused;
  return watched_get(4);
}

Test(thread_local_heap, while_calls_are_watched_all_take_the_slow_way) {
  void *before = get(4);
  mu_watch_calls();
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    void *p = watched_get(c);
    CHECK(p, "class %u", c);
    CHECK(!mu_vector_push_new(mu_vector_of(c), p), "class %u", c);
    mu_free_overflow(p, c);
    CHECK(watched_get(c) == p, "class %u: the thread's own heap must keep what it freed", c);
  }
  CHECK(!mu_vector_push_new(mu_vector_of(4), before), "what was there before");
  mu_free_overflow(before, 4);
  pthread_t thread;
  void *other = NULL;
  cr_assert_eq(pthread_create(&thread, NULL, watched_thread, NULL), 0);
  pthread_join(thread, &other);
  cr_assert(other);
  mu_thread_flush();
  validate();
}

Test(thread_local_heap, vectors_stand_side_by_side) {
  get(1);
  void **at = mu_tlh->slots;
  cr_assert_eq(mu_tlh->vectors[0].end, mu_tlh->vectors[0].bottom);
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    const struct mu_shuffle_vector *v = &mu_tlh->vectors[c];
    cr_assert_eq(v->bottom, at, "class %u", c);
    cr_assert(v->limit >= 1 && v->limit <= 8, "class %u begins with room for %u", c, v->limit);
    cr_assert_eq(v->end, at += v->limit, "class %u", c);
  }
}

/* Each class's room doubles by need to the class's cap, and keeps what the vector holds. */
Test(thread_local_heap, vectors_grow_by_need) {
  cr_assert(mu_heap_ready());
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    void *slots[MU_MAX_CAP];
    uint32_t cap = mu_classes[c].cap;
    for (uint32_t i = 0; i < cap; i++) slots[i] = get(c);
    mu_thread_flush();
    for (uint32_t i = 0; i < cap; i++) {
      put(slots[i], c);
      CHECK(kept(c) == i + 1 && kept(c) <= mu_tlh->vectors[c].limit, "class %u, %u", c, i);
    }
    CHECK(mu_tlh->vectors[c].limit == cap, "class %u", c);
    for (uint32_t i = cap; i-- > 0;) CHECK(mu_vector_pop(&mu_tlh->vectors[c]) == slots[i], "class %u, %u", c, i);
    for (uint32_t i = 0; i < cap; i++) put(slots[i], c);
  }
  mu_thread_flush();
  validate();
}

/* ---- refill and overflow ---- */

/* What a refill claims doubles, from a few slots to the class's batch. */
Test(thread_local_heap, refills_grow_to_a_batch) {
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    const struct mu_size_class *k = &mu_classes[c];
    void *p = get(c);
    uint32_t first = kept(c) + 1, last = first;
    cr_assert_not_null(p);
    cr_assert(first <= k->batch && first <= 8, "class %u: %u", c, first);
    cr_assert_eq(live(c), first, "class %u: %zu", c, live(c));
    put(p, c);
    cr_assert_eq(get(c), p, "what was freed last is warm");
    for (int i = 0; i < 8; i++) {
      while (kept(c)) get(c);
      get(c);
      uint32_t most = (uint32_t)mu_min(last * 2, k->batch);
      CHECK(kept(c) < most, "class %u: %u after %u", c, kept(c) + 1, last); /* fewer, when a span has no more */
      last = most;
      CHECK(mu_tlh->vectors[c].batch == mu_min(last * 2, k->batch), "class %u", c);
    }
  }
  validate();
}

/* Fills the class's vector with slots whose order is known. */
static uint32_t fill(unsigned c, void **slots) {
  uint32_t cap = mu_classes[c].cap;
  for (uint32_t i = 0; i < cap + 1; i++) slots[i] = get(c);
  mu_thread_flush();
  mu_cache_trim(c, true);
  for (uint32_t i = 0; i < cap; i++) put(slots[i], c);
  return cap;
}

Test(thread_local_heap, an_overflow_hands_on_the_older_half) {
  cr_assert(mu_heap_ready());
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    void *slots[MU_MAX_CAP + 1];
    uint32_t cap = fill(c, slots), half = (cap + 1) / 2;
    cr_assert_eq(live(c), cap + 1, "class %u", c);
    put(slots[cap], c);
    cr_assert_eq(live(c), cap + 1 - half, "class %u", c);
    cr_assert_eq(kept(c), cap + 1 - half);
    cr_assert_eq(mu_class_heaps[c].cache.count, half);
    for (uint32_t i = cap; i >= half; i--) CHECK(mu_vector_pop(&mu_tlh->vectors[c]) == slots[i], "class %u, %u", c, i);
    cr_assert_eq(get(c), slots[half - 1], "class %u: what was handed on comes back, the newest first", c);
    cr_assert_eq(mu_class_heaps[c].cache.count, 0);
    put(slots[half - 1], c);
    for (uint32_t i = half; i <= cap; i++) put(slots[i], c);
    mu_cache_trim(c, true);
    mu_thread_flush();
    cr_assert_eq(live(c), 0);
  }
  validate();
}

/* More than vectors and cache hold: the rest goes back to the spans; what lay in the cache unused for a tick follows.
 */
Test(thread_local_heap, the_cache_is_bounded_and_empties) {
  cr_assert(mu_heap_ready());
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    enum { MOST = 2048 };
    void *slots[MOST];
    uint32_t n = mu_classes[c].cache + mu_classes[c].cap + 8U, used = n / 4;
    struct mu_transfer_cache *cache = &mu_class_heaps[c].cache;
    cr_assert(n <= MOST);
    for (uint32_t i = 0; i < n; i++) slots[i] = get(c);
    for (uint32_t i = 0; i < n; i++) put(slots[i], c);
    cr_assert(cache->count > 0 && cache->count <= mu_classes[c].cache, "class %u: %u", c, cache->count);
    validate();
    mu_cache_trim(c, false);
    cr_assert(cache->count > 0, "class %u: it was empty since the last time, nothing is surplus", c);
    uint32_t most = cache->count;
    for (uint32_t i = 0; i < used; i++) slots[i] = get(c);
    uint32_t low = cache->count;
    for (uint32_t i = 0; i < used; i++) put(slots[i], c);
    cr_assert_eq(cache->low, low);
    uint32_t before = cache->count;
    cr_assert_eq(mu_cache_trim(c, false), before - low, "class %u", c);
    cr_assert(before <= most + mu_classes[c].cap);
    cr_assert_eq(mu_cache_trim(c, false), 0, "class %u", c);
    mu_thread_flush();
    cr_assert_eq(live(c), 0);
    validate();
  }
}

/* A page and more: a slot is said to be zeros until it was handed out once, and again when its pages were dropped. */
Test(thread_local_heap, fresh_slots_are_marked_once) {
  cr_assert(mu_heap_ready());
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    bool large = !mu_classes[c].meshable;
    void *slot = get_slot(c);
    cr_assert_eq(mu_is_fresh(slot), large, "class %u", c);
    void *p = mu_unmarked(slot);
    memset(p, 'x', mu_classes[c].size);
    put(p, c);
    mu_thread_flush(); /* marked ones too */
    for (uint32_t i = 0; i < mu_classes[c].slots; i++) {
      void *again = get_slot(c);
      if (mu_unmarked(again) == p) CHECK(!mu_is_fresh(again), "class %u", c);
      for (size_t at = 0; mu_is_fresh(again) && at < mu_classes[c].size; at++)
        CHECK(!((char *)mu_unmarked(again))[at], "class %u", c);
    }
  }
}

Test(thread_local_heap, a_flush_gives_back_what_the_program_has_not) {
  void *p = get(7), *q = get(30);
  mu_thread_flush();
  cr_assert_eq(live(7), 1);
  cr_assert_eq(live(30), 1);
  cr_assert_eq(kept(7), 0);
  put(p, 7);
  put(q, 30);
  cr_assert_eq(live(7), 1, "a slot in a vector is live");
  mu_thread_flush();
  cr_assert_eq(live(7) + live(30), 0);
  validate();
}

static int no_mprotect(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mprotect ? ENOMEM : 0;
}

Test(thread_local_heap, a_refused_refill_leaves_an_empty_vector) {
  put(get(1), 1);
  mu_sys_hook = no_mprotect;
  while (get(9)) {
  }
  cr_assert_null(get(9));
  cr_assert_eq(kept(9), 0);
  mu_sys_hook = NULL;
  cr_assert_not_null(get(9));
  validate();
}

static int no_memory(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mmap || call == MU_SYS_mprotect ? ENOMEM : 0;
}

Test(thread_local_heap, without_any_memory_there_is_no_heap_yet) {
  mu_sys_hook = no_memory;
  cr_assert_not(mu_heap_ready());
  cr_assert_null(get(1));
  mu_sys_hook = NULL;
  cr_assert_not_null(get(1));
  cr_assert(mu_heap_ready());
}

static int no_mmap(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mmap ? ENOMEM : 0;
}

/* The arena is there, a ThreadLocalHeap cannot be had. */
Test(thread_local_heap, a_thread_without_a_heap_is_served_slot_by_slot) {
  cr_assert(mu_heap_ready());
  mu_sys_hook = no_mmap;
  void *p = get(5), *q = get(5);
  cr_assert(p && q && p != q);
  cr_assert_eq(live(5), 2);
  put(p, 5);
  put(q, 5);
  cr_assert_eq(live(5), 0);
  mu_sys_hook = NULL;
}

/* ---- threads ---- */

static void in_thread(void *(*run)(void *), void *arg) {
  pthread_t thread;
  cr_assert_eq(pthread_create(&thread, NULL, run, arg), 0);
  pthread_join(thread, NULL);
}

static struct mu_thread_local_heap *heap_seen;

static void *use_all_classes(void *keep) {
  void **kept = keep;
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    void *p = get(c), *q = get(c);
    put(q, c);
    if (kept)
      kept[c] = p;
    else
      put(p, c);
  }
  heap_seen = mu_tlh;
  return NULL;
}

Test(thread_local_heap, a_thread_that_ends_gives_all_back) {
  void *kept[MU_CLASSES];
  in_thread(use_all_classes, kept);
  for (unsigned c = 1; c < MU_CLASSES; c++) cr_assert_eq(live(c), 1, "class %u: %zu", c, live(c));
  for (unsigned c = 1; c < MU_CLASSES; c++) put(kept[c], c);
  mu_thread_flush();
  for (unsigned c = 1; c < MU_CLASSES; c++) cr_assert_eq(live(c), 0, "class %u: %zu", c, live(c));
  validate();
}

Test(thread_local_heap, heaps_of_ended_threads_are_used_again) {
  in_thread(use_all_classes, NULL);
  struct mu_thread_local_heap *first = heap_seen;
  get(1);
  cr_assert_eq(mu_tlh, first);
  in_thread(use_all_classes, NULL);
  struct mu_thread_local_heap *second = heap_seen;
  cr_assert_neq(second, first);
  for (int i = 0; i < 100; i++) {
    in_thread(use_all_classes, NULL);
    CHECK(heap_seen == second, "thread %d", i);
  }
}

/* Destructors of the program's keys may run after ours, and allocate. */
static pthread_key_t late_key;
static size_t late_live[3];
static void *late_kept;

static void late_destructor(void *p) {
  put(p, 2);
  late_live[0] = live(2);
  late_kept = get(2);
  late_live[1] = live(2);
  mu_thread_flush();
  put(get(2), 2);
  late_live[2] = live(2);
}

static void *end_late(void *unused) {
  pthread_setspecific(late_key, get(2));
  return unused;
}

Test(thread_local_heap, a_thread_that_has_ended_keeps_nothing) {
  cr_assert(mu_heap_ready()); /* its own key comes first */
  pthread_key_create(&late_key, late_destructor);
  in_thread(end_late, NULL);
  cr_assert_not_null(late_kept);
  cr_assert_eq(late_live[0], 0);
  cr_assert_eq(late_live[1], 1);
  cr_assert_eq(late_live[2], 1);
  validate();
}

/* A thread whose first call is a free. */
static void *only_free(void *p) {
  put(p, 4);
  return NULL;
}

Test(thread_local_heap, a_thread_may_begin_with_a_free) {
  void *p = get(4);
  mu_thread_flush();
  in_thread(only_free, p);
  cr_assert_eq(live(4), 0);
  validate();
}

/* ---- threads that hand objects to one another ---- */

enum { THREADS = 4, SHARED = 256, ROUNDS = 40000 };

static _Atomic(uint64_t *) shared[SHARED];
static _Atomic uint32_t overwritten;

/* Its first word says of which class it is, the second repeats that: two owners would spoil it. */
static void release(uint64_t *p) {
  if (!p) return;
  if (p[0] >= MU_CLASSES || p[1] != ~p[0]) {
    atomic_fetch_add(&overwritten, 1);
    return;
  }
  unsigned c = (unsigned)p[0];
  p[0] = p[1] = ~(uint64_t)0;
  put(p, c);
}

static void *exchange(void *seed) {
  uint64_t rng = (uintptr_t)seed * 0x9E3779B97F4A7C15u + 1;
  for (int i = 0; i < ROUNDS; i++) {
    unsigned c = 1 + mu_rng_below(&rng, mu_rng_below(&rng, 16) ? 12 : MU_CLASSES - 1);
    uint64_t *p = mu_rng_below(&rng, 2) ? get(c) : NULL;
    if (p) p[0] = c, p[1] = ~(uint64_t)c;
    release(atomic_exchange(&shared[mu_rng_below(&rng, SHARED)], p));
  }
  return NULL;
}

Test(thread_local_heap, objects_change_hands) {
  pthread_t threads[THREADS];
  for (uintptr_t i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, exchange, (void *)(i + 1));
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  size_t count[MU_CLASSES] = {0};
  for (int i = 0; i < SHARED; i++)
    if (shared[i]) count[shared[i][0] % MU_CLASSES]++;
  cr_assert_eq(overwritten, 0);
  validate();
  for (unsigned c = 1; c < MU_CLASSES; c++) cr_assert_eq(live(c), count[c], "class %u: %zu live", c, live(c));
  for (int i = 0; i < SHARED; i++) release(shared[i]);
  mu_thread_flush();
  for (unsigned c = 1; c < MU_CLASSES; c++) cr_assert_eq(live(c), 0, "class %u: %zu live", c, live(c));
  for (unsigned c = 1; c < MU_CLASSES; c++) mu_cache_trim(c, true);
  cr_assert_eq(mu_spans_in_use, 0);
}

/* ---- fork ---- */

static _Atomic uint32_t waiting, go_on;
static void *of_others[THREADS];

static void *hold(void *place) {
  *(void **)place = get(6);
  put(get(9), 9);
  atomic_fetch_add(&waiting, 1);
  while (!atomic_load(&go_on)) mu_futex_wait(&go_on, 0, -1);
  put(*(void **)place, 6);
  return NULL;
}

/* In the child: its own vectors stay; what was in the others' stays claimed, and their heaps are used again. */
static int child_after_fork(void) {
  uint32_t own = kept(6);
  size_t nines = live(9), sixes = live(6);
  mu_registry_forget_others();
  if (live(6) != sixes || live(9) != nines) return 1;
  if (kept(6) != own) return 2;
  for (int i = 0; i < THREADS; i++) put(of_others[i], 6);
  validate();
  in_thread(use_all_classes, NULL);
  validate();
  return live(9) == nines ? 0 : 3;
}

Test(thread_local_heap, a_forked_child_leaves_what_other_threads_had) {
  pthread_t threads[THREADS];
  int status;
  cr_assert_not_null(get(6));
  for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, hold, &of_others[i]);
  while (atomic_load(&waiting) < THREADS) sched_yield();
  cr_assert_geq(live(9), THREADS);
  mu_lock_take(&mu_registry);
  mu_global_lock_all();
  pid_t child = fork();
  mu_global_unlock_all();
  mu_lock_release(&mu_registry);
  if (child == 0) _exit(child_after_fork());
  cr_assert_eq(waitpid(child, &status, 0), child);
  cr_assert_eq(status, 0, "status %d", status >> 8);
  atomic_store(&go_on, 1);
  mu_futex_wake(&go_on, THREADS);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  mu_thread_flush();
  cr_assert_eq(live(6), 1);
  cr_assert_eq(live(9), 0);
  validate();
}
