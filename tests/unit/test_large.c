/* SPDX-License-Identifier: Apache-2.0 */
#include "src/global_heap.h"
#include "src/large.h"
#include "src/rng.h"
#include "src/sys.h"
#include "src/validate.h"
#include "tests/unit/pages.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Every assertion that Criterion counts costs a message: loops use this one. */
#define CHECK(condition, format, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) cr_assert_fail("%s: " format, #condition, ##__VA_ARGS__);                                        \
  } while (0)

static bool zeroed;

static void make_heap(void) {
  cr_assert(mu_arena_init());
  mu_global_heap_init();
}

TestSuite(large, .init = make_heap, .timeout = 60);

static size_t bytes_of(size_t pages) {
  return pages << mu_arena.page_shift;
}

static char *take(size_t pages) {
  char *p = mu_large_alloc(bytes_of(pages), 1, &zeroed);
  cr_assert_not_null(p);
  return p;
}

static size_t large_pages(void) {
  return atomic_load(&mu_large_pages);
}

/* The first word of each page says which it is. */
static void stamp(char *p, size_t pages, uint64_t seed) {
  for (size_t i = 0; i < pages; i++) memcpy(p + bytes_of(i), &(uint64_t){seed + i}, 8);
}

static bool has_stamp(const char *p, size_t pages, uint64_t seed) {
  for (size_t i = 0; i < pages; i++)
    if (memcmp(p + bytes_of(i), &(uint64_t){seed + i}, 8) != 0) return false;
  return true;
}

static bool is_zero(const char *p, size_t pages) {
  for (size_t i = 0; i < pages; i++)
    if (memcmp(p + bytes_of(i), &(uint64_t){0}, 8) != 0) return false;
  return true;
}

Test(large, sizes_are_rounded_up_to_pages) {
  static const size_t sizes[] = {0, 1, 4095, 4096, 4097, 20000, 70000, 1 << 20, (1 << 20) + 1};
  size_t all = 0;
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    size_t pages = mu_max(mu_pages_for(sizes[i]), 1);
    char *p = mu_large_alloc(sizes[i], 1, &zeroed);
    cr_assert_eq(mu_large_usable(p), bytes_of(pages), "%zu bytes", sizes[i]);
    cr_assert(zeroed && is_zero(p, pages));
    cr_assert_eq(large_pages(), all += pages);
  }
  mu_heap_validate(true);
}

Test(large, addresses_are_aligned) {
  for (size_t align = 1; align <= (size_t)1 << 26; align *= 2) {
    char *p = mu_large_alloc(bytes_of(3), align, &zeroed);
    cr_assert_eq((uintptr_t)p % align, 0, "to %zu", align);
  }
  mu_heap_validate(true);
}

Test(large, what_cannot_be_had_is_refused) {
  static const size_t sizes[] = {SIZE_MAX, (size_t)PTRDIFF_MAX + 1, PTRDIFF_MAX};
  char *p = take(1);
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    cr_assert_null(mu_large_alloc(sizes[i], 1, &zeroed));
    cr_assert_null(mu_large_alloc(1, sizes[i] / 2 + 1, &zeroed));
    cr_assert_null(mu_large_resize(p, sizes[i]));
  }
  cr_assert_eq(large_pages(), 1);
  mu_heap_validate(true);
}

Test(large, only_the_start_of_one_is_one) {
  char *p = take(4), *gone = take(2);
  char *const others[] = {p + 1, p + 16,          p + bytes_of(1),         p + bytes_of(4),
                          gone,  (char *)&zeroed, mu_arena.base,           (char *)mu_arena.runs,
                          NULL,  p - bytes_of(1), mu_page_address(1 << 20)};
  cr_assert(mu_large_free(gone));
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    cr_assert_not(mu_large_free(others[i]), "%zu", i);
    cr_assert_eq(mu_large_usable(others[i]), 0, "%zu", i);
    cr_assert_null(mu_large_resize(others[i], 100), "%zu", i);
  }
  cr_assert(mu_large_free(p));
  cr_assert_not(mu_large_free(p));
  cr_assert_eq(large_pages(), 0);
}

Test(large, freed_memory_is_used_again_and_not_called_zeroed) {
  char *p = take(8);
  memset(p, 1, bytes_of(8));
  mu_large_free(p);
  cr_assert_eq(take(8), p);
  cr_assert_not(zeroed);
}

Test(large, one_that_shrinks_gives_its_end_back) {
  char *p = take(10);
  stamp(p, 10, 7);
  cr_assert_eq(mu_large_resize(p, bytes_of(10) - 1), p);
  cr_assert_eq(mu_large_usable(p), bytes_of(10));
  cr_assert_eq(mu_large_resize(p, bytes_of(4) - 5), p);
  cr_assert_eq(mu_large_usable(p), bytes_of(4));
  cr_assert_eq(large_pages(), 4);
  cr_assert_eq(take(6), p + bytes_of(4));
  cr_assert(has_stamp(p, 4, 7));
  cr_assert_eq(mu_large_resize(p, 0), p);
  cr_assert_eq(mu_large_usable(p), bytes_of(1));
  mu_heap_validate(true);
}

Test(large, one_grows_in_place_where_it_can) {
  char *p = take(3), *next = take(5);
  take(1);
  stamp(p, 3, 7);
  cr_assert_null(mu_large_resize(p, bytes_of(4)), "too small to move, and in the way of another");
  mu_large_free(next);
  cr_assert_eq(mu_large_resize(p, bytes_of(8)), p);
  cr_assert_eq(mu_large_usable(p), bytes_of(8));
  cr_assert(has_stamp(p, 3, 7));
  cr_assert_eq(large_pages(), 9);
  mu_heap_validate(true);
}

Test(large, one_that_cannot_grow_in_place_moves_its_pages) {
  enum { PAGES = 200 };
  char *p = take(PAGES), *after = take(1);
  stamp(p, PAGES, 7);
  char *q = mu_large_resize(p, bytes_of(2 * PAGES));
  cr_assert(q && q != p);
  cr_assert_eq(mu_large_usable(q), bytes_of(2 * PAGES));
  cr_assert_eq(mu_large_usable(p), 0);
  cr_assert(has_stamp(q, PAGES, 7) && is_zero(q + bytes_of(PAGES), PAGES));
  cr_assert_eq(large_pages(), 2 * PAGES + 1);
  mu_heap_validate(true);
  cr_assert_eq(take(PAGES), p, "where it was is free");
  cr_assert(zeroed && is_zero(p, PAGES));
  stamp(p, PAGES, 9);
  /* And once more: it came by mremap, and goes so. */
  take(1);
  char *r = mu_large_resize(q, bytes_of(5 * PAGES));
  cr_assert(r && has_stamp(r, PAGES, 7) && has_stamp(p, PAGES, 9));
  mu_large_free(r);
  mu_large_free(p);
  mu_large_free(after);
  mu_heap_validate(true);
}

/* ---- refused ---- */

static int refused_call = -1;

static int refuse(enum mu_sys call, uint64_t index) {
  (void)index;
  return (int)call == refused_call ? ENOMEM : 0;
}

Test(large, one_that_cannot_be_moved_stays) {
  enum { PAGES = 200 };
  char *p = take(PAGES);
  take(1);
  stamp(p, PAGES, 7);
  mu_sys_hook = refuse;
  refused_call = MU_SYS_mremap;
  cr_assert_null(mu_large_resize(p, bytes_of(2 * PAGES)));
  cr_assert_eq(mu_large_usable(p), bytes_of(PAGES));
  cr_assert(has_stamp(p, PAGES, 7));
  cr_assert_eq(large_pages(), PAGES + 1);
  mu_heap_validate(true);
  refused_call = MU_SYS_mprotect; /* the arena cannot grow */
  cr_assert_null(mu_large_resize(p, (size_t)1 << 34));
  cr_assert_null(mu_large_alloc((size_t)1 << 34, 1, &zeroed));
  mu_heap_validate(true);
  refused_call = -1;
  char *q = mu_large_resize(p, bytes_of(2 * PAGES));
  cr_assert(q && has_stamp(q, PAGES, 7));
}

Test(large, one_that_was_moved_is_freed_without_a_new_mapping) {
  enum { PAGES = 200 };
  char *p = take(PAGES);
  take(1);
  p = mu_large_resize(p, bytes_of(2 * PAGES));
  memset(p, 1, bytes_of(2 * PAGES));
  mu_sys_hook = refuse;
  refused_call = MU_SYS_mmap;
  cr_assert(mu_large_free(p));
  refused_call = -1;
  mu_heap_validate(true);
  cr_assert_geq(atomic_load(&mu_dirty_pages), 2 * PAGES, "it is not taken for zeroed");
}

/* ---- any sequence of calls ---- */

enum { HELD = 100, STEPS = 3000, SEEDS = 4 };

static struct {
  uint64_t seed, rng;
  size_t all;
  struct {
    char *p;
    size_t pages;
    uint64_t stamp;
  } held[HELD];
} model;

#define MUST(condition, format, ...) CHECK(condition, "seed %zu: " format, (size_t)model.seed, ##__VA_ARGS__)

static uint32_t below(uint32_t n) {
  return mu_rng_below(&model.rng, n);
}

static bool drop(void *start, size_t len) {
  return mu_madvise(start, len, MADV_DONTNEED) == 0;
}

static size_t random_pages(void) {
  uint32_t kind = below(10);
  return 1 + below(kind < 6 ? 16 : kind < 9 ? 150 : 600);
}

static void model_alloc(size_t i) {
  size_t pages = random_pages(), align = below(3) ? 1 : (size_t)1 << below(22);
  char *p = mu_large_alloc(bytes_of(pages) - below((uint32_t)mu_arena.page_size), align, &zeroed);
  MUST(p && (uintptr_t)p % align == 0 && mu_large_usable(p) == bytes_of(pages), "%zu pages at %p", pages, (void *)p);
  MUST(!zeroed || is_zero(p, pages), "%p is not zeroed", (void *)p);
  model.held[i].p = p;
  model.held[i].pages = pages;
}

static void model_resize(size_t i) {
  size_t pages = below(2) ? random_pages() : model.held[i].pages + below(300);
  char *p = mu_large_resize(model.held[i].p, bytes_of(pages));
  if (!p) {
    MUST(pages > model.held[i].pages && bytes_of(model.held[i].pages) < 1 << 18, "%zu pages to %zu",
         model.held[i].pages, pages);
    return;
  }
  MUST(mu_large_usable(p) == bytes_of(pages), "%p", (void *)p);
  MUST(has_stamp(p, mu_min(pages, model.held[i].pages), model.held[i].stamp), "%p: what it held is lost", (void *)p);
  model.held[i].p = p;
  model.held[i].pages = pages;
}

static void model_step(void) {
  size_t i = below(HELD), before = model.held[i].pages;
  if (!model.held[i].p) {
    model_alloc(i);
  } else {
    MUST(has_stamp(model.held[i].p, before, model.held[i].stamp), "%p is overwritten", (void *)model.held[i].p);
    if (below(2)) {
      model_resize(i);
    } else {
      MUST(mu_large_free(model.held[i].p), "%p", (void *)model.held[i].p);
      model.held[i].p = NULL;
      model.held[i].pages = 0;
    }
  }
  model.all += model.held[i].pages - before;
  if (!model.held[i].p) return;
  model.held[i].stamp = mu_rng_next(&model.rng) | 1;
  stamp(model.held[i].p, model.held[i].pages, model.held[i].stamp);
}

Test(large, any_sequence_of_calls) {
  for (model.seed = 1; model.seed <= SEEDS; model.seed++) {
    model.rng = model.seed * 0x9E3779B97F4A7C15u + 1;
    for (int step = 0; step < STEPS; step++) {
      model_step();
      if (below(300) == 0) mu_extent_purge(atomic_load(&mu_tick), SIZE_MAX, drop);
      if (step % 100) continue;
      mu_heap_validate(true);
      MUST(large_pages() == model.all, "%zu pages, not %zu", large_pages(), model.all);
    }
  }
}
