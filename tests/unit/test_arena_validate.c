/* SPDX-License-Identifier: Apache-2.0 */
/* The validator of extents finds every invariant that is broken. Built with the arena's own source, to break it. */
#include "src/global_heap.h"
#include "src/large.h"
#include "src/rng.h"
#include "src/validate.h"

#include "src/arena.c"
#include "tests/unit/pages.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* A heap with a run, a large allocation of four pages, and free extents of both kinds between others in use. */
static struct {
  size_t run, large, dirty, young, clean, single; /* first pages; each free extent but the single has six pages */
} at;

static size_t take_large(size_t pages) {
  bool zeroed;
  char *p = mu_large_alloc(pages << mu_arena.page_shift, 1, &zeroed);
  cr_assert_not_null(p);
  return mu_page_of(p);
}

static void free_large(size_t page) {
  cr_assert(mu_large_free(mu_page_address(page)));
}

static bool drop_for_real(void *start, size_t len) {
  return mu_madvise(start, len, MADV_DONTNEED) == 0;
}

static void make_heap(void) {
  uint64_t rng = 1;
  void *slots[8];
  bool grown;
  cr_assert(mu_arena_init());
  mu_global_heap_init();
  cr_assert_gt(mu_claim(3, slots, 8, &rng, &grown), 0);
  at.run = mu_round_down(mu_page_of(slots[0]), MU_RUN_PAGES);
  at.large = take_large(4);
  size_t *parts[] = {&at.clean, &at.dirty, &at.young, &at.single};
  for (size_t i = 0; i < 4; i++) {
    *parts[i] = take_large(i < 3 ? 6 : 1);
    take_large(1); /* keeps them apart */
  }
  free_large(at.clean);
  cr_assert_eq(mu_extent_purge(atomic_load(&mu_tick), SIZE_MAX, drop_for_real), 6);
  free_large(at.dirty);
  atomic_fetch_add(&mu_tick, 5);
  free_large(at.young);
  free_large(at.single);
}

TestSuite(arena_validate, .init = make_heap, .timeout = 60);

/* ---- what may go wrong ---- */

static struct mu_extent *of(size_t page) {
  return mu_extent_at(page);
}
static struct mu_extent *tail_of(size_t page) {
  return mu_extent_at(page + of(page)->pages - 1);
}

static void wrong_state(void) {
  of(at.dirty)->state = MU_EXTENT_CLEAN;
}
static void clean_as_dirty(void) {
  of(at.clean)->state = MU_EXTENT_DIRTY;
}
static void free_as_large(void) {
  of(at.dirty)->state = MU_LARGE;
}
static void busy_for_ever(void) {
  of(at.clean)->state = MU_EXTENT_BUSY;
}
static void too_long(void) {
  of(at.dirty)->pages++;
}
static void too_short(void) {
  of(at.clean)->pages--;
}
static void empty(void) {
  of(at.single)->pages = 0;
}
static void beyond_the_top(void) {
  of(at.clean)->pages = (uint32_t)x.top;
}
static void no_tail(void) {
  tail_of(at.dirty)->state = MU_NONE;
}
static void tail_of_another_length(void) {
  tail_of(at.dirty)->pages--;
}
static void record_inside(void) {
  of(at.dirty + 2)->state = MU_LARGE;
}
static void extent_inside_an_extent(void) {
  put_on(at.clean + 1, 2, MU_EXTENT_CLEAN);
}
static void page_map_of_free(void) {
  mu_arena.page_map[at.dirty + 3] = 3;
}
static void page_map_of_large(void) {
  mu_arena.page_map[at.large] = 3;
}
static void page_map_of_run(void) {
  mu_arena.page_map[at.run + 5] = 4;
}
static void run_in_free_memory(void) {
  size_t page = mu_extent_alloc(MU_RUN_PAGES, MU_RUN_PAGES, &(bool){0});
  mu_extent_free(page, MU_RUN_PAGES, true);
  mu_arena.runs[page / MU_RUN_PAGES].in_use = 1;
}
static void run_on_no_list(void) {
  size_t page = mu_extent_alloc(MU_RUN_PAGES, MU_RUN_PAGES, &(bool){0});
  mu_arena.runs[page / MU_RUN_PAGES].in_use = 1;
}
static void record_in_a_run(void) {
  of(at.run + 1)->state = MU_EXTENT_TAIL;
}
static void wrong_next(void) {
  of(at.young)->next = (uint32_t)at.clean;
}
static void wrong_prev(void) {
  of(at.dirty)->prev = (uint32_t)at.clean;
}
static void list_without_end(void) {
  of(at.dirty)->next = (uint32_t)at.young;
}
static void on_no_list(void) {
  bin_remove(at.clean);
}
static void on_two_lists(void) {
  x.head[1][9] = (uint32_t)at.clean;
}
static void in_a_wrong_bin(void) {
  bin_remove(at.single);
  of(at.single)->pages = 9;
  bin_insert(at.single);
  of(at.single)->pages = 1;
}
static void bin_not_marked(void) {
  x.nonempty[0][0] &= ~((uint64_t)1 << 6);
}
static void empty_bin_marked(void) {
  x.nonempty[1][1] |= 4;
}
static void not_among_the_ages(void) {
  age_remove(at.dirty);
}
static void ages_out_of_order(void) {
  of(at.dirty)->stamp += 100;
}
static void wrong_oldest(void) {
  x.oldest = (uint32_t)at.young;
}
static void wrong_newest(void) {
  x.newest = (uint32_t)at.dirty;
}
static void wrong_older(void) {
  of(at.young)->older = MU_NO_PAGE;
}
static void not_merged(void) {
  take_off(at.dirty);
  put_on(at.dirty, 3, MU_EXTENT_DIRTY);
  put_on(at.dirty + 3, 3, MU_EXTENT_DIRTY);
}
static void dirty_count(void) {
  atomic_fetch_add(&mu_dirty_pages, 1);
}
static void large_count(void) {
  atomic_fetch_sub(&mu_large_pages, 1);
}
static void nobodys_page(void) {
  mu_extent_alloc(1, 1, &(bool){0});
}
static void large_on_large(void) {
  of(at.large)->pages = 5;
}
static void large_without_pages(void) {
  of(at.large)->pages = 0;
}
static void large_forgotten(void) {
  forget(at.large);
}
static void top_too_low(void) {
  x.top -= 1;
}
static void top_not_committed(void) {
  x.top = x.committed + 1;
}
static void limit_not_committed(void) {
  atomic_fetch_add(&mu_arena.limit, MU_RUN_PAGES);
}
static void more_committed_than_reserved(void) {
  x.committed = mu_arena.reserved + 1;
}

static const struct damage {
  const char *name;
  void (*make)(void);
  bool only_quiet; /* found by accounting for every page alone */
} damages[] = {
#define D(f)                                                                                                           \
  { #f, f, false }
#define Q(f)                                                                                                           \
  { #f, f, true }
    D(wrong_state),
    D(clean_as_dirty),
    D(free_as_large),
    D(busy_for_ever),
    D(too_long),
    D(too_short),
    D(empty),
    D(beyond_the_top),
    D(no_tail),
    D(tail_of_another_length),
    D(record_inside),
    D(extent_inside_an_extent),
    D(page_map_of_free),
    Q(page_map_of_large),
    D(page_map_of_run),
    D(run_in_free_memory),
    D(run_on_no_list),
    Q(record_in_a_run),
    D(wrong_next),
    D(wrong_prev),
    D(list_without_end),
    Q(on_no_list),
    D(on_two_lists),
    D(in_a_wrong_bin),
    D(bin_not_marked),
    D(empty_bin_marked),
    D(not_among_the_ages),
    D(ages_out_of_order),
    D(wrong_oldest),
    D(wrong_newest),
    D(wrong_older),
    D(not_merged),
    D(dirty_count),
    Q(large_count),
    Q(nobodys_page),
    Q(large_on_large),
    Q(large_without_pages),
    Q(large_forgotten),
    Q(top_too_low),
    D(top_not_committed),
    D(limit_not_committed),
    D(more_committed_than_reserved),
#undef D
#undef Q
};

/* In a process of its own. */
static bool is_found(const struct damage *d, bool quiet) {
  int status;
  pid_t child = fork();
  if (child == 0) {
    dup2(open("/dev/null", O_WRONLY), 2);
    d->make();
    mu_heap_validate(quiet);
    _exit(0);
  }
  cr_assert_eq(waitpid(child, &status, 0), child);
  cr_assert(WIFEXITED(status) || WTERMSIG(status) == SIGABRT, "%s: status %d", d->name, status);
  return WIFSIGNALED(status);
}

Test(arena_validate, whatever_is_broken_is_found) {
  mu_heap_validate(true);
  for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
    cr_assert(is_found(&damages[i], true), "%s", damages[i].name);
    cr_assert_eq(is_found(&damages[i], false), !damages[i].only_quiet, "%s, not quiet", damages[i].name);
  }
}

/* ---- nothing is broken ---- */

static bool validate_and_drop(void *start, size_t len) {
  mu_heap_validate(false); /* what is being dropped is on no list, and that is fine */
  return drop_for_real(start, len);
}

Test(arena_validate, whatever_is_done_breaks_nothing) {
  enum { HELD = 200, STEPS = 3000 };
  static void *held[HELD];
  bool zeroed;
  for (uint64_t seed = 1; seed <= 3; seed++) {
    uint64_t rng = seed * 0x9E3779B97F4A7C15u;
    for (int step = 0; step < STEPS; step++) {
      void **p = &held[mu_rng_below(&rng, HELD)];
      size_t bytes = (size_t)(1 + mu_rng_below(&rng, mu_rng_below(&rng, 5) ? 12 : 300)) << mu_arena.page_shift;
      if (!*p)
        *p = mu_large_alloc(bytes, (size_t)1 << mu_rng_below(&rng, 20), &zeroed);
      else if (mu_rng_below(&rng, 3) == 0) {
        void *new = mu_large_resize(*p, bytes);
        if (new) *p = new;
      } else {
        mu_large_free(*p);
        *p = NULL;
      }
      if (mu_rng_below(&rng, 20) == 0) atomic_fetch_add(&mu_tick, 1);
      if (mu_rng_below(&rng, 200) == 0) mu_extent_purge(atomic_load(&mu_tick) - 1, 100, validate_and_drop);
      if (step % 50 == 0) mu_heap_validate(true);
    }
    mu_heap_validate(true);
  }
}
