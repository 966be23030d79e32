/* SPDX-License-Identifier: Apache-2.0 */
#include "src/lock.h"
#include "src/sys.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

enum { THREADS = 4, ROUNDS = 30000 };

static struct mu_lock lock = MU_LOCK_INIT(MU_RANK_LEAF);
static volatile uint64_t counter; /* under the lock */
static _Atomic uint32_t inside, intruders, errno_changes;

static void enter(void) {
  if (atomic_fetch_add(&inside, 1)) atomic_fetch_add(&intruders, 1);
  counter = counter + 1;
}

static void leave(void) {
  atomic_fetch_sub(&inside, 1);
}

static void *short_holder(void *unused) {
  (void)unused;
  errno = 12345;
  for (int i = 0; i < ROUNDS; i++) {
    mu_lock_take(&lock);
    enter();
    if (i % 512 == 0) sched_yield(); /* on one processor, too, somebody finds it held */
    leave();
    mu_lock_release(&lock);
  }
  if (errno != 12345) atomic_fetch_add(&errno_changes, 1);
  return NULL;
}

/* Holds it longer than anybody spins: the others sleep and have to be woken. */
static void *long_holder(void *unused) {
  (void)unused;
  for (int i = 0; i < 50; i++) {
    _Atomic uint32_t never = 0;
    mu_lock_take(&lock);
    enter();
    mu_futex_wait(&never, 0, 200000);
    leave();
    mu_lock_release(&lock);
  }
  return NULL;
}

static void run_threads(void *(*run)(void *)) {
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++) cr_assert_eq(pthread_create(&threads[i], NULL, run, NULL), 0);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
}

Test(lock, one_at_a_time, .timeout = 30) {
  run_threads(short_holder);
  cr_assert_eq(counter, (uint64_t)THREADS * ROUNDS);
  cr_assert_eq(intruders, 0);
  cr_assert_eq(errno_changes, 0, "errno is the program's");
  cr_assert_eq(lock.word, 0);
}

Test(lock, who_sleeps_is_woken, .timeout = 30) {
  run_threads(long_holder);
  cr_assert_eq(counter, (uint64_t)THREADS * 50);
  cr_assert_eq(intruders, 0);
  cr_assert_eq(lock.word, 0);
}

static _Atomic uint32_t taken;

static void *take_once(void *unused) {
  (void)unused;
  mu_lock_take(&lock);
  atomic_store(&taken, 1);
  mu_lock_release(&lock);
  return NULL;
}

Test(lock, a_held_lock_is_waited_for, .timeout = 30) {
  pthread_t thread;
  mu_lock_take(&lock);
  cr_assert_eq(lock.word, mu_thread_number);
  cr_assert(mu_lock_is_mine(&lock));
  pthread_create(&thread, NULL, take_once, NULL);
  while (!(atomic_load(&lock.word) & MU_LOCK_WAITED)) sched_yield();
  cr_assert_eq(atomic_load(&taken), 0);
  mu_lock_release(&lock);
  pthread_join(thread, NULL);
  cr_assert_eq(atomic_load(&taken), 1);
  cr_assert_eq(lock.word, 0);
}

static void *try_once(void *ms) {
  if (mu_lock_seize(&lock, mu_now_ns() + (uintptr_t)ms * 1000000)) mu_lock_let_go(&lock);
  return NULL;
}

/* Of one who waits for ever and some who give up sooner or later, whoever is woken first: nobody sleeps on. */
static void wait_in_company(unsigned ms) {
  enum { TRYING = 2 };
  pthread_t trying[TRYING], waiting;
  mu_lock_take(&lock);
  for (int i = 0; i < TRYING; i++) pthread_create(&trying[i], NULL, try_once, (void *)(uintptr_t)ms);
  pthread_create(&waiting, NULL, take_once, NULL);
  while (!(atomic_load(&lock.word) & MU_LOCK_WAITED)) sched_yield();
  mu_futex_wait(&taken, 0, 300000);
  mu_lock_release(&lock);
  pthread_join(waiting, NULL);
  for (int i = 0; i < TRYING; i++) pthread_join(trying[i], NULL);
  atomic_store(&taken, 0);
}

Test(lock, who_gives_up_takes_nobodys_wake, .timeout = 60) {
  alarm(60);
  for (int i = 0; i < 300; i++) wait_in_company(i % 3 ? 1000 : 0);
  cr_assert(mu_lock_seize(&lock, 0), "it is free");
  mu_lock_let_go(&lock);
}

/* What a forked child finds: a lock of its own thread's, one of somebody else's, and one that nobody holds. */
Test(lock, a_forked_child_keeps_its_own_locks_alone, .timeout = 30) {
  struct mu_lock own = MU_LOCK_INIT(MU_RANK_EXTENT), other = MU_LOCK_INIT(MU_RANK_LEAF),
                 none = MU_LOCK_INIT(MU_RANK_GATE);
  mu_lock_take(&own);
  own.word |= MU_LOCK_WAITED;
  other.word = mu_thread_number + 1;
  cr_assert(!mu_lock_inherit(&own) && mu_lock_inherit(&other) && !mu_lock_inherit(&none));
  cr_assert(mu_lock_is_mine(&own) && !mu_lock_is_mine(&other) && !mu_lock_is_mine(&none));
  cr_assert_eq(own.word, mu_thread_number, "nobody waits for it here");
  cr_assert_eq(other.word | none.word, 0);
  mu_lock_release(&own);
  mu_lock_take(&other);
  mu_lock_release(&other);
  cr_assert_eq(own.word | other.word, 0);
  cr_assert_eq(own.rank, MU_RANK_EXTENT);
}

Test(lock, one_that_is_held_is_seized_by_nobody, .timeout = 30) {
  struct mu_lock held = MU_LOCK_INIT(MU_RANK_LEAF);
  cr_assert(mu_lock_seize(&held, 0));
  uint64_t began = mu_now_ns();
  cr_assert(!mu_lock_seize(&held, began + 20000000), "not by its holder either");
  cr_assert_geq(mu_now_ns() - began, 20000000);
  cr_assert(mu_lock_is_mine(&held));
  mu_lock_let_go(&held);
  cr_assert_eq(held.word, 0);
}

/* By a signal handler that has interrupted its holder: it says so instead. */
Test(lock, taken_again_by_its_holder_it_dies, .signal = SIGABRT, .timeout = 30) {
  mu_lock_take(&lock);
  mu_lock_slow(&lock, mu_thread_number);
}

Test(lock, ascending_ranks_in_any_order_of_release) {
  struct mu_lock locks[] = {MU_LOCK_INIT(MU_RANK_PASS), MU_LOCK_INIT(MU_RANK_REGISTRY), MU_LOCK_INIT(MU_RANK_CLASS),
                            MU_LOCK_INIT(MU_RANK_CLASS + 40), MU_LOCK_INIT(MU_RANK_EXTENT)};
  static const int order[] = {2, 0, 4, 1, 3};
  for (int i = 0; i < 5; i++) mu_lock_take(&locks[i]);
  for (int i = 0; i < 5; i++) mu_lock_release(&locks[order[i]]);
  /* Nothing is remembered of it. */
  mu_lock_take(&locks[0]);
  mu_lock_release(&locks[0]);
  for (int i = 0; i < 5; i++) cr_assert_eq(locks[i].word, 0);
}

/* The order is checked in debug builds. */
static void take_two(uint32_t first, uint32_t second) {
#ifndef MU_DEBUG
  cr_skip_test("not a debug build");
#endif
  struct mu_lock a = MU_LOCK_INIT(first), b = MU_LOCK_INIT(second);
  mu_lock_take(&a);
  mu_lock_take(&b);
}

#ifdef MU_DEBUG
#define DIES .signal = SIGABRT
#else
#define DIES .signal = 0
#endif

Test(lock, a_lower_rank_is_refused, DIES) {
  take_two(MU_RANK_EXTENT, MU_RANK_CLASS);
}

Test(lock, the_same_rank_is_refused, DIES) {
  take_two(MU_RANK_CLASS + 3, MU_RANK_CLASS + 3);
}

Test(lock, a_lock_that_is_not_held_is_not_released, DIES) {
#ifndef MU_DEBUG
  cr_skip_test("not a debug build");
#endif
  mu_lock_release(&lock);
}
