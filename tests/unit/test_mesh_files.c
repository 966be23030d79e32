/* SPDX-License-Identifier: Apache-2.0 */
#include "src/arena.h"
#include "src/mesh_files.h"
#include "src/rng.h"
#include "src/sys.h"
#include "tests/unit/pages.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

/* Every assertion that Criterion counts costs a message: loops use this one. */
#define CHECK(condition, format, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) cr_assert_fail("%s: " format, #condition, ##__VA_ARGS__);                                        \
  } while (0)

static void make_arena(void) {
  cr_assert(mu_arena_init());
}

TestSuite(mesh_files, .init = make_arena, .timeout = 60);

static uint64_t pages(void) {
  return mu_file_bytes() >> mu_arena.page_shift;
}

Test(mesh_files, a_new_record_is_open_and_empty) {
  uint32_t n = mu_file_new(5, 32);
  const struct mu_file_record *r = mu_file_at(n);
  cr_assert(n >= 1 && n < mu_file_top());
  cr_assert_eq(r->size_class, 5);
  cr_assert_eq(r->unit_pages, 32);
  cr_assert(r->open && !r->victim && !r->once_live && !r->live);
  cr_assert_eq(mu_file_units(r), 0);
  cr_assert_eq(pages(), 0);
}

Test(mesh_files, memory_goes_with_the_last_that_shows_it) {
  uint32_t n = mu_file_new(1, 4);
  mu_file_add_pages(n, 10);
  mu_file_ref(n);
  mu_file_ref(n);
  mu_file_add_pages(n, 5);
  cr_assert_eq(mu_file_units(mu_file_at(n)), 2);
  mu_file_unref(n);
  cr_assert_eq(pages(), 15);
  mu_file_closed(n);
  cr_assert_eq(pages(), 15);
  cr_assert_eq(mu_file_units(mu_file_at(n)), 1);
  mu_file_unref(n);
  cr_assert_eq(pages(), 0);
  uint32_t m = mu_file_new(2, 8);
  cr_assert_eq(mu_file_at(m)->size_class, 2);
}

Test(mesh_files, one_that_nothing_shows_goes_when_it_is_closed) {
  uint32_t n = mu_file_new(1, 4);
  mu_file_add_pages(n, 3);
  mu_file_closed(n);
  cr_assert_eq(pages(), 0);
}

Test(mesh_files, a_child_closes_what_was_open) {
  uint32_t shown = mu_file_new(1, 4), unused = mu_file_new(1, 4), closed = mu_file_new(1, 4);
  mu_file_add_pages(shown, 1);
  mu_file_add_pages(unused, 2);
  mu_file_add_pages(closed, 4);
  mu_file_ref(shown);
  mu_file_ref(closed);
  mu_file_closed(closed);
  mu_files_close_all();
  mu_files_close_all();
  cr_assert_eq(pages(), 5);
  cr_assert_not(mu_file_at(shown)->open);
  mu_file_unref(shown);
  mu_file_unref(closed);
  cr_assert_eq(pages(), 0);
}

static int no_mmap(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mmap ? ENOMEM : 0;
}

Test(mesh_files, no_memory_for_records_no_record) {
  mu_sys_hook = no_mmap;
  cr_assert_eq(mu_file_new(1, 4), 0);
  mu_files_close_all();
  mu_sys_hook = NULL;
  cr_assert_eq(mu_file_new(1, 4), 1);
}

/* As many as there is room for; then each that is given up, wherever it is, can be had again. */
Test(mesh_files, a_full_table_takes_what_is_given_up) {
  uint32_t n, top = 0;
  uint64_t rng = 1;
  while ((n = mu_file_new(1, 4))) {
    CHECK(n == top + 1, "%u after %u", n, top);
    top = n;
  }
  for (int i = 0; i < 50; i++) {
    uint32_t a = 1 + mu_rng_below(&rng, top), b = 1 + mu_rng_below(&rng, top);
    if (a == b) continue;
    mu_file_closed(a);
    mu_file_closed(b);
    uint32_t first = mu_file_new(2, 4), second = mu_file_new(2, 4);
    CHECK((first == a && second == b) || (first == b && second == a), "%u and %u, not %u and %u", first, second, a, b);
    CHECK(mu_file_new(2, 4) == 0, "there is none left");
  }
}

/* ---- any sequence of calls ---- */

Test(mesh_files, any_sequence_of_calls) {
  enum { MOST = 500, STEPS = 30000, SEEDS = 3 };
  static struct {
    bool used, open;
    uint32_t units, pages;
  } is[2 * MOST];
  uint64_t all = 0;
  uint32_t count = 0;
  for (uint64_t seed = 1; seed <= SEEDS; seed++) {
    uint64_t rng = seed * 0x9E3779B97F4A7C15u + 1;
    for (int step = 0; step < STEPS; step++) {
      uint32_t n = 1 + mu_rng_below(&rng, 2 * MOST - 1), what = mu_rng_below(&rng, 10);
      if (what == 0 && count < MOST) {
        n = mu_file_new(7, 2);
        CHECK(n && n < 2 * MOST && !is[n].used, "seed %zu: record %u is in use", (size_t)seed, n);
        is[n].used = is[n].open = true;
        is[n].units = is[n].pages = 0;
        count++;
      } else if (is[n].used && is[n].open && what < 4) {
        uint32_t more = mu_rng_below(&rng, 30);
        mu_file_add_pages(n, more);
        is[n].pages += more;
        all += more;
      } else if (is[n].used && is[n].open && what < 6) {
        mu_file_ref(n);
        is[n].units++;
      } else if (is[n].used && is[n].open && what == 6) {
        mu_file_closed(n);
        is[n].open = false;
      } else if (is[n].used && is[n].units) {
        mu_file_unref(n);
        is[n].units--;
      }
      if (is[n].used && !is[n].open && !is[n].units) {
        is[n].used = false;
        all -= is[n].pages;
        count--;
      }
      CHECK(pages() == all, "seed %zu, step %d: %zu pages, not %zu", (size_t)seed, step, (size_t)pages(), (size_t)all);
      if (is[n].used) CHECK(mu_file_units(mu_file_at(n)) == is[n].units, "seed %zu: record %u", (size_t)seed, n);
    }
  }
}

/* ---- threads that give up the last references ---- */

enum { FILES = 300, THREADS = 2, REFS = 20 };
static uint32_t numbers[FILES];
static _Atomic uint32_t ready;

static void *give_up(void *unused) {
  atomic_fetch_add(&ready, 1);
  while (atomic_load(&ready) < THREADS) sched_yield();
  for (int i = 0; i < FILES; i++)
    for (int k = 0; k < REFS; k++) mu_file_unref(numbers[i]);
  return unused;
}

Test(mesh_files, the_last_of_several_threads_counts_its_memory_once) {
  for (int round = 0; round < 20; round++) {
    pthread_t threads[THREADS];
    atomic_store(&ready, 0);
    for (int i = 0; i < FILES; i++) {
      numbers[i] = mu_file_new(1, 4);
      mu_file_add_pages(numbers[i], 9);
      for (int k = 0; k < THREADS * REFS; k++) mu_file_ref(numbers[i]);
      mu_file_closed(numbers[i]);
    }
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, give_up, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    cr_assert_eq(pages(), 0, "round %d: %zu pages", round, (size_t)pages());
  }
  cr_assert_eq(mu_file_top(), FILES + 1);
}
