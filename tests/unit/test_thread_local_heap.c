/* SPDX-License-Identifier: Apache-2.0 */
#include "src/rng.h"
#include "src/sys.h"
#include "src/thread_local_heap.h"

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
static void *get(unsigned c) {
  void *p = mu_vector_pop(&mu_tlh->vectors[c]);
  return p ? p : mu_malloc_refill(c);
}

static void put(void *p, unsigned c) {
  if (!mu_vector_push(&mu_tlh->vectors[c], p)) mu_free_overflow(p, c);
}

static size_t live(unsigned c) {
  return mu_class_heaps[c].live_slots;
}

static void validate(void) {
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    mu_class_lock(c);
    mu_class_validate(c);
    mu_class_unlock(c);
  }
}

TestSuite(thread_local_heap, .init = mu_threads_init, .timeout = 30);

/* ---- a vector ---- */

Test(thread_local_heap, a_vector_is_a_stack_of_so_many_slots) {
  struct mu_shuffle_vector v = {.cap = 5};
  int slots[6];
  cr_assert_null(mu_vector_pop(&v));
  for (int i = 0; i < 5; i++) cr_assert(mu_vector_push(&v, &slots[i]));
  cr_assert_not(mu_vector_push(&v, &slots[5]));
  cr_assert_eq(v.count, 5);
  for (int i = 4; i >= 0; i--) cr_assert_eq(mu_vector_pop(&v), &slots[i]);
  cr_assert_null(mu_vector_pop(&v));
  cr_assert_eq(v.count, 0);
}

Test(thread_local_heap, a_vector_without_room_takes_nothing) {
  struct mu_shuffle_vector v = {.cap = 0};
  int slot;
  cr_assert_not(mu_vector_push(&v, &slot));
  cr_assert_null(mu_vector_pop(&v));
}

Test(thread_local_heap, nobody_has_a_heap_before_the_first_call) {
  for (unsigned c = 0; c < MU_CLASSES; c++) {
    cr_assert_eq(mu_tlh->vectors[c].cap, 0);
    cr_assert_eq(mu_tlh->vectors[c].count, 0);
  }
}

Test(thread_local_heap, no_vector_straddles_a_page) {
  get(1);
  for (unsigned c = 0; c < MU_CLASSES; c++) {
    uintptr_t at = (uintptr_t)&mu_tlh->vectors[c];
    cr_assert_eq(at / 4096, (at + sizeof(struct mu_shuffle_vector) - 1) / 4096, "class %u", c);
    cr_assert_eq(mu_tlh->vectors[c].cap, c ? mu_classes[c].cap : 0);
  }
}

/* ---- refill and overflow ---- */

Test(thread_local_heap, a_refill_claims_a_batch_and_keeps_all_but_one) {
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    void *p = get(c);
    size_t batch = mu_min(mu_classes[c].batch, mu_classes[c].slots);
    cr_assert_not_null(p);
    cr_assert_eq(live(c), batch, "class %u: %zu", c, live(c));
    cr_assert_eq(mu_tlh->vectors[c].count, batch - 1);
    put(p, c);
    cr_assert_eq(mu_tlh->vectors[c].count, batch);
    cr_assert_eq(get(c), p, "what was freed last is warm");
    put(p, c);
  }
  validate();
}

/* Fills the class's vector with slots whose order is known. */
static uint32_t fill(unsigned c, void **slots) {
  uint32_t cap = mu_classes[c].cap;
  for (uint32_t i = 0; i < cap + 1; i++) slots[i] = get(c);
  mu_thread_flush();
  for (uint32_t i = 0; i < cap; i++) put(slots[i], c);
  return cap;
}

Test(thread_local_heap, an_overflow_gives_back_the_older_half) {
  cr_assert(mu_heap_ready());
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    void *slots[MU_VECTOR_ROOM + 1];
    uint32_t cap = fill(c, slots), half = cap / 2;
    cr_assert_eq(live(c), cap + 1, "class %u", c);
    put(slots[cap], c);
    cr_assert_eq(live(c), cap + 1 - half, "class %u", c);
    cr_assert_eq(mu_tlh->vectors[c].count, cap + 1 - half);
    for (uint32_t i = cap; i >= half; i--) CHECK(mu_vector_pop(&mu_tlh->vectors[c]) == slots[i], "class %u, %u", c, i);
    for (uint32_t i = half; i <= cap; i++) CHECK(mu_vector_push(&mu_tlh->vectors[c], slots[i]), "class %u", c);
    mu_thread_flush();
    cr_assert_eq(live(c), 0);
  }
  validate();
}

Test(thread_local_heap, a_flush_gives_back_what_the_program_has_not) {
  void *p = get(7), *q = get(30);
  mu_thread_flush();
  cr_assert_eq(live(7), 1);
  cr_assert_eq(live(30), 1);
  cr_assert_eq(mu_tlh->vectors[7].count, 0);
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
  cr_assert_eq(mu_tlh->vectors[9].count, 0);
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
  uint32_t own = mu_tlh->vectors[6].count;
  size_t nines = live(9), sixes = live(6);
  mu_registry_renew();
  mu_registry_forget_others();
  if (live(6) != sixes || live(9) != nines) return 1;
  if (mu_tlh->vectors[6].count != own) return 2;
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
  cr_assert_eq(live(9), THREADS * mu_min(mu_classes[9].batch, mu_classes[9].slots));
  mu_registry_lock();
  mu_global_lock_all();
  pid_t child = fork();
  mu_global_unlock_all();
  mu_registry_unlock();
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
