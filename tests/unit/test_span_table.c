/* SPDX-License-Identifier: Apache-2.0 */
#include "src/global_heap.h"
#include "src/rng.h"
#include "src/span_table.h"
#include "src/sys.h"
#include "tests/unit/pages.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

/* Every assertion that Criterion counts costs a message: loops use this one. */
#define CHECK(condition, format, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) cr_assert_fail("%s: " format, #condition, ##__VA_ARGS__);                                        \
  } while (0)

enum { HELD = 3000, STEPS = 40000, SEEDS = 3 };

static struct {
  uint64_t seed, rng;
  struct table {
    unsigned size_class; /* 0: none */
    unsigned char *at;
    unsigned char mark;
  } held[HELD];
  char *highest;
} model;

static uint32_t below(uint32_t n) {
  return mu_rng_below(&model.rng, n);
}

static void make_arena(void) {
  cr_assert(mu_arena_init());
}

static char *firsts[MU_CLASSES];

static void take_firsts(void) {
  make_arena();
  for (unsigned c = 1; c < MU_CLASSES; c++) firsts[c] = mu_span_table_alloc(c);
}

TestSuite(first_tables, .init = make_arena, .timeout = 60);
TestSuite(span_table, .init = take_firsts, .timeout = 60);

/* The slabs come into it with a class's second table. */
Test(first_tables, they_lie_side_by_side_and_are_used_again) {
  take_firsts();
  size_t gaps = 0, bytes = 0;
  for (unsigned c = 2; c < MU_CLASSES; c++) {
    gaps += firsts[c] != firsts[c - 1] + mu_round_up(mu_table_bytes(c - 1), 64);
    bytes += mu_table_bytes(c - 1);
  }
  cr_assert_leq(gaps, bytes >> 17, "only where a chunk of metadata ends");
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    char *second = mu_span_table_alloc(c);
    cr_assert(second >= mu_arena.span_tables && second < mu_arena.span_tables + mu_arena.span_tables_bytes);
    memset(firsts[c], 'x', mu_table_bytes(c));
    mu_span_table_free(c, firsts[c]);
    cr_assert_eq(mu_span_table_alloc(c), firsts[c]);
    for (size_t i = 0; i < mu_table_bytes(c); i++) CHECK(!firsts[c][i], "class %u: not zeroed", c);
    mu_span_table_free(c, second);
  }
}

static bool is_all(const unsigned char *p, size_t n, unsigned char byte) {
  for (size_t i = 0; i < n; i++)
    if (p[i] != byte) return false;
  return true;
}

static void take(struct table *t, unsigned c) {
  size_t bytes = mu_table_bytes(c);
  *t = (struct table){c, mu_span_table_alloc(c), (unsigned char)(1 + below(255))};
  CHECK(t->at, "class %u", c);
  char *end = (char *)t->at + bytes;
  CHECK((char *)t->at >= mu_arena.span_tables && end <= mu_arena.span_tables + mu_arena.span_tables_bytes, "%p",
        (void *)t->at);
  CHECK((uintptr_t)t->at % 8 == 0, "%p", (void *)t->at);
  CHECK(is_all(t->at, bytes, 0), "seed %zu, class %u: not zeroed", (size_t)model.seed, c);
  memset(t->at, t->mark, bytes);
  if (end > model.highest) model.highest = end;
}

static void give(struct table *t) {
  CHECK(is_all(t->at, mu_table_bytes(t->size_class), t->mark), "seed %zu, class %u: overwritten", (size_t)model.seed,
        t->size_class);
  mu_span_table_free(t->size_class, t->at);
  t->size_class = 0;
}

static void give_all(void) {
  for (size_t i = 0; i < HELD; i++)
    if (model.held[i].size_class) give(&model.held[i]);
}

Test(span_table, any_sequence_of_calls) {
  for (model.seed = 1; model.seed <= SEEDS; model.seed++) {
    model.rng = model.seed * 0x9E3779B97F4A7C15u + 1;
    for (int step = 0; step < STEPS; step++) {
      struct table *t = &model.held[below(HELD)];
      if (t->size_class)
        give(t);
      else
        take(t, 1 + below(MU_CLASSES - 1));
      if (below(STEPS / 2) == 0) give_all();
    }
  }
  give_all();
}

/* Slabs that are empty serve every class: no class needs new ones for what another has given back. */
Test(span_table, what_one_class_gives_back_serves_the_others) {
  model.rng = 1;
  for (size_t i = 0; i < HELD; i++) take(&model.held[i], 1);
  give_all();
  char *top = mu_arena.span_tables + mu_round_up((size_t)(model.highest - mu_arena.span_tables), (size_t)1 << 18);
  for (unsigned c = 2; c < MU_CLASSES; c++) {
    size_t n = HELD * mu_table_bytes(1) / mu_table_bytes(c) / 2;
    for (size_t i = 0; i < mu_min(n, HELD); i++) take(&model.held[i], c);
    give_all();
    CHECK(model.highest <= top, "class %u", c);
  }
}

static size_t resident_pages(void) {
  size_t page = getauxval(AT_PAGESZ); /* mincore's */
  size_t pages = mu_round_up((size_t)(model.highest - mu_arena.span_tables), page) / page;
  unsigned char *in_core = calloc(pages, 1);
  size_t n = 0;
  cr_assert_eq(mincore(mu_arena.span_tables, pages * page, in_core), 0);
  for (size_t i = 0; i < pages; i++) n += in_core[i] & 1;
  free(in_core);
  return n;
}

Test(span_table, empty_slabs_give_their_memory_back) {
  model.rng = 1;
  for (size_t i = 0; i < HELD; i++) take(&model.held[i], 1);
  size_t full = resident_pages();
  give_all();
  cr_assert_leq(resident_pages(), full / 3, "%zu of %zu pages", resident_pages(), full);
}

static int no_mprotect(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mprotect ? ENOMEM : 0;
}

Test(span_table, it_can_run_out_and_come_back) {
  mu_sys_hook = no_mprotect;
  for (unsigned c = 1; c < MU_CLASSES; c++) cr_assert_null(mu_span_table_alloc(c), "class %u", c);
  mu_sys_hook = NULL;
  model.rng = 1;
  for (unsigned c = 1; c < MU_CLASSES; c++) take(&model.held[c], c);
  give_all();
}

/* Refused while slabs with room are there: those are used up first. */
Test(span_table, what_is_there_is_used_when_no_more_can_be_had) {
  size_t n = 0;
  model.rng = 1;
  take(&model.held[n++], 1);
  mu_sys_hook = no_mprotect;
  for (void *p; n < HELD && (p = mu_span_table_alloc(1)); n++) {
    CHECK(is_all(p, mu_table_bytes(1), 0), "table %zu", n);
    model.held[n] = (struct table){1, p, 0};
  }
  cr_assert_gt(n, 4);
  cr_assert_lt(n, HELD);
  give_all();
  cr_assert_not_null(mu_span_table_alloc(MU_CLASSES - 1));
}

Test(span_table, refused_madvise_loses_nothing) {
  model.rng = 1;
  mu_sys_hook = NULL;
  for (int round = 0; round < 3; round++) {
    for (size_t i = 0; i < 200; i++) take(&model.held[i], 1 + (unsigned)(i + (size_t)round) % (MU_CLASSES - 1));
    mu_sys_hook_from_text("madvise:0-:12");
    give_all();
  }
}

/* ---- moves ------------------------------------------------------------------------------------------------------- */

/* Of many one in eight is left: moved, these fill little more than they need. */
Test(span_table, what_is_moved_lies_together_and_the_rest_goes_back) {
  model.rng = 1;
  for (size_t i = 0; i < HELD; i++) take(&model.held[i], 8);
  for (size_t i = 0; i < HELD; i++)
    if (below(8)) give(&model.held[i]);
  size_t scattered = resident_pages(), left = 0;
  for (int round = 0; round < 3; round++)
    for (size_t i = left = 0; i < HELD; i++) {
      struct table *t = &model.held[i];
      if (!t->size_class) continue;
      left++;
      t->at = mu_span_table_move(8, t->at);
      CHECK(is_all(t->at, mu_table_bytes(8), t->mark), "table %zu", i);
    }
  size_t needed = left * mu_table_bytes(8) / getauxval(AT_PAGESZ);
  cr_assert_gt(scattered, needed * 3);
  cr_assert_lt(resident_pages(), needed * 2 + 64, "%zu of %zu pages, %zu needed", resident_pages(), scattered, needed);
  give_all();
}

Test(span_table, thin_blocks_of_any_size) {
  enum { BLOCKS = 1000 };
  static struct {
    unsigned char *at, mark;
    size_t bytes;
  } held[BLOCKS];
  size_t before = 0;
  for (size_t bytes = 1; bytes < 4000; bytes++) {
    size_t is = mu_thin_block_bytes(bytes);
    CHECK(is >= bytes && is >= before && (bytes <= 64 || is * 4 <= bytes * 5), "%zu, not %zu", is, bytes);
    before = is;
  }
  for (model.seed = 1; model.seed <= SEEDS; model.seed++) {
    model.rng = model.seed;
    for (int step = 0; step < STEPS; step++) {
      size_t i = below(BLOCKS);
      if (!held[i].at) {
        held[i].bytes = 1 + below(1 + below(2500));
        held[i].at = mu_thin_block_alloc(held[i].bytes);
        CHECK(held[i].at, "step %d", step);
        held[i].mark = (unsigned char)(1 + below(255));
        memset(held[i].at, held[i].mark, held[i].bytes);
        continue;
      }
      if (below(2)) held[i].at = mu_thin_block_move(held[i].at, held[i].bytes);
      CHECK(is_all(held[i].at, held[i].bytes, held[i].mark), "step %d", step);
      if (below(2)) continue;
      mu_thin_block_free(held[i].at, held[i].bytes);
      held[i].at = NULL;
    }
  }
}
