/* SPDX-License-Identifier: Apache-2.0 */
#include "src/global_heap.h"
#include "src/mesh_files.h"
#include "src/rng.h"
#include "src/span_table.h"
#include "src/sys.h"
#include "tests/unit/pages.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Every assertion that Criterion counts costs a message: loops use this one. */
#define CHECK(condition, format, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) cr_assert_fail("%s: " format, #condition, ##__VA_ARGS__);                                        \
  } while (0)

/* 256 MiB; more than two runs of the smallest slots, with pages of 64 KiB. */
enum { GRANULES = 1 << 24, MAX_HELD = 1 << 20, BATCH = 64 };

static struct {
  uint64_t seed, rng;
  uint8_t taken[GRANULES]; /* a byte for each 16 bytes of the arena */
  void *held[MAX_HELD];
  uint32_t count;
} model = {.rng = 1};

#define MUST(condition, format, ...) CHECK(condition, "seed %zu: " format, ##__VA_ARGS__)
#define SEED                         ((size_t)model.seed)

static uint32_t below(uint32_t n) {
  return mu_rng_below(&model.rng, n);
}

static void make_heap(void) {
  cr_assert(mu_arena_init());
  mu_global_heap_init();
}

TestSuite(global_heap, .init = make_heap, .timeout = 30);

static void mark(unsigned c, const void *p, uint8_t value) {
  size_t first = (size_t)((const char *)p - mu_arena.base) / 16, n = mu_classes[c].size / 16;
  MUST(first + n <= GRANULES, "%p", SEED, p);
  for (size_t i = first; i < first + n; i++) MUST(model.taken[i] != value, "%p: its bytes are in use", SEED, p);
  memset(&model.taken[first], value, n);
}

static void validate(unsigned c) {
  mu_class_lock(c);
  mu_class_validate(c);
  mu_class_unlock(c);
}

static uint8_t right_bin(const struct mu_size_class *k, const struct mu_mini_heap *span) {
  if (span->state != MU_SPAN_OPEN || span->live == k->slots) return MU_NO_BIN;
  if (span->live) return (uint8_t)(span->live * 8 / k->slots);
  return span->flags & MU_MH_TOUCHED ? MU_EMPTY_BIN : MU_CLEAN_BIN;
}

/* Every open span with room is on the list of its occupancy or, when it has lost slots, on the one above, once; and
 * nothing else is on any. */
static void check_lists(unsigned c) {
  const struct mu_class_heap *h = &mu_class_heaps[c];
  const struct mu_size_class *k = &mu_classes[c];
  size_t listed = 0, room = 0;
  for (uint8_t bin = 0; bin < MU_BINS; bin++) {
    uint32_t last = 0;
    for (uint32_t page = h->bins[bin], before = 0; page; before = page, page = mu_mini_heap(page)->next, listed++) {
      last = page;
      const struct mu_mini_heap *span = mu_mini_heap(page);
      MUST(span->prev == before, "page %u: back to %u", SEED, page, span->prev);
      uint8_t right = right_bin(k, span);
      bool is_right = right == bin || (right + 1 == bin && bin < MU_EMPTY_BIN);
      MUST(span->bin == bin && is_right, "page %u: %u live on list %u", SEED, page, span->live, bin);
      MUST(listed < GRANULES, "a list without end", SEED);
    }
    MUST(bin != MU_EMPTY_BIN || h->oldest_empty == last, "page %u is the last, not %u", SEED, last, h->oldest_empty);
  }
  for (uint32_t r = h->runs; r; r = mu_arena.runs[r].next)
    for (size_t page = (size_t)r * MU_RUN_PAGES; page < (r + (size_t)1) * MU_RUN_PAGES; page += k->span_pages)
      room += right_bin(k, mu_mini_heap(page)) != MU_NO_BIN;
  MUST(listed == room, "%zu spans on lists, %zu have room", SEED, listed, room);
}

static void check_class(unsigned c) {
  validate(c);
  check_lists(c);
}

static uint32_t claim(unsigned c, void **out, uint32_t n) {
  uint32_t got = mu_claim(c, out, n, &model.rng, &(bool){false});
  MUST(got >= 1 && got <= n, "%u of %u slots", SEED, got, n);
  for (uint32_t i = 0; i < got; i++) {
    MUST(!mu_is_fresh(out[i]) || !mu_classes[c].meshable, "a small slot is marked", SEED);
    out[i] = mu_unmarked(out[i]);
    struct mu_place at = mu_place_of(mu_run_of(mu_page_of(out[i])), out[i]);
    mark(c, out[i], 1);
    MUST(at.exact && mu_bit(at.span->bitmap, at.slot), "%p is not a live slot", SEED, out[i]);
    MUST(mu_arena.page_map[mu_page_of(out[i])] == c, "%p", SEED, out[i]);
  }
  return got;
}

static void give_back(unsigned c, void **slots, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) mark(c, slots[i], 0);
  mu_give_back(c, slots, n);
}

/* Claims exactly n slots. */
static void claim_all(unsigned c, void **out, uint32_t n) {
  for (uint32_t got = 0; got < n;) got += claim(c, out + got, n - got < BATCH ? n - got : BATCH);
}

static uint32_t run_number(const void *p) {
  return (uint32_t)(mu_page_of(p) / MU_RUN_PAGES);
}

static struct mu_mini_heap *span_of(const void *p) {
  return mu_place_of(mu_run_of(mu_page_of(p)), p).span;
}

static unsigned slots_per_run(unsigned c) {
  return (unsigned)mu_classes[c].slots * mu_classes[c].spans_per_run;
}

/* ---- random claims and give-backs ---- */

static uint8_t fullest_bin(unsigned c) {
  const struct mu_size_class *k = &mu_classes[c];
  uint8_t best = MU_EMPTY_BIN;
  for (uint32_t r = mu_class_heaps[c].runs; r; r = mu_arena.runs[r].next)
    for (size_t page = (size_t)r * MU_RUN_PAGES; page < (r + (size_t)1) * MU_RUN_PAGES; page += k->span_pages) {
      uint8_t bin = right_bin(k, mu_mini_heap(page));
      if (bin < MU_EMPTY_BIN && (best == MU_EMPTY_BIN || bin > best)) best = bin;
    }
  return best;
}

/* What one claim took, by span. */
struct taken {
  uint32_t count, slots[BATCH];
  const struct mu_mini_heap *spans[BATCH];
};

static void note_taken(struct taken *t, const struct mu_mini_heap *span) {
  uint32_t i = 0;
  while (i < t->count && t->spans[i] != span) i++;
  t->spans[i] = span;
  t->slots[i]++;
  if (i == t->count) t->count++;
}

static void model_claim(unsigned c) {
  void *out[BATCH];
  uint32_t n = 1 + below(BATCH - 1);
  if (model.count + n > MAX_HELD) return;
  uint8_t best = fullest_bin(c);
  uint32_t got = claim(c, out, n);
  struct taken taken = {0};
  for (uint32_t i = 0; i < got; i++) note_taken(&taken, span_of(out[i]));
  uint32_t fullest = 0, open = 0;
  for (uint32_t i = 0; i < taken.count; i++) {
    uint32_t was = taken.spans[i]->live - taken.slots[i];
    MUST(was || taken.count == 1, "an empty span beside others", SEED);
    fullest = was > fullest ? was : fullest;
    open += taken.spans[i]->live < mu_classes[c].slots;
  }
  MUST(open <= (got == n), "%u of %u slots, and %u spans are not full", SEED, got, n, open);
  uint32_t taken_from = fullest ? fullest * 8 / mu_classes[c].slots : MU_EMPTY_BIN;
  MUST(taken_from == best || (taken_from + 1 == best && best < MU_EMPTY_BIN), /* it may have been on the list above */
       "a span with %u of %u slots, but there is one in %u", SEED, fullest, mu_classes[c].slots, best);
  memcpy(model.held + model.count, out, got * sizeof *out);
  model.count += got;
}

static void model_give_back(unsigned c) {
  void *out[BATCH];
  uint32_t n = 0;
  for (uint32_t want = 1 + below(BATCH - 1); n < want && model.count; n++) {
    uint32_t i = below(model.count);
    out[n] = model.held[i];
    model.held[i] = model.held[--model.count];
  }
  give_back(c, out, n);
}

static void run_model(unsigned c, uint64_t seed) {
  const struct mu_class_heap *h = &mu_class_heaps[c];
  model.seed = seed;
  model.rng = seed * 0x9E3779B97F4A7C15u + 1;
  for (int step = 0; step < 600; step++) {
    bool growing = step / 100 % 2 == 0;
    below(10) < (growing ? 7 : 3) ? model_claim(c) : model_give_back(c);
    MUST(h->live_slots == model.count, "%zu live, not %u", SEED, h->live_slots, model.count);
    MUST(h->spare_runs <= 1, "%u runs without an object", SEED, h->spare_runs);
    if (step % 20 == 0) check_class(c);
  }
  while (model.count) model_give_back(c);
  check_class(c);
  MUST(h->run_count <= 1 && h->live_slots == 0 && h->used_spans == 0, "%u runs left", SEED, h->run_count);
  MUST(h->span_allocs == h->span_frees, "%zu spans", SEED, (size_t)h->span_allocs);
}

Test(global_heap, claims_and_give_backs_in_any_order) {
  static const uint8_t classes[] = {1, 2, 3, 8, 11, 16, 21, 27, 28, 29, 40};
  for (size_t i = 0; i < sizeof classes; i++)
    for (uint64_t seed = 1; seed <= 2; seed++) run_model(classes[i], seed * 100 + i);
  cr_assert_eq(mu_spans_in_use, 0);
  cr_assert_gt(mu_spans_hwm, 0);
}

/* ---- runs ---- */

Test(global_heap, a_run_holds_its_slots_and_another_is_made_for_one_more) {
  void *one;
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    model.count = slots_per_run(c);
    claim_all(c, model.held, model.count);
    cr_assert_eq(mu_class_heaps[c].run_count, 1, "class %u", c);
    cr_assert_eq(mu_class_heaps[c].used_spans, mu_classes[c].spans_per_run);
    claim(c, &one, 1);
    cr_assert_eq(mu_class_heaps[c].run_count, 2);
    check_class(c);
    give_back(c, &one, 1);
    give_back(c, model.held, model.count);
    check_class(c);
    cr_assert_eq(mu_class_heaps[c].run_count, mu_classes[c].spare_runs, "one is kept, if it is of many spans");
  }
}

Test(global_heap, an_emptied_run_goes_back_to_the_arena) {
  const unsigned c = 8;
  uint32_t n = slots_per_run(c) * 5;
  claim_all(c, model.held, n);
  cr_assert_eq(mu_class_heaps[c].run_count, 5);
  give_back(c, model.held, n);
  cr_assert_eq(mu_class_heaps[c].run_count, 1);
  cr_assert_eq(mu_dirty_pages, 4 * MU_RUN_PAGES);
  uint32_t left = mu_class_heaps[c].runs, others = 0;
  for (size_t page = MU_RUN_PAGES; page < 6 * MU_RUN_PAGES; page++) {
    others += page / MU_RUN_PAGES != left;
    cr_assert_eq(mu_arena.page_map[page], page / MU_RUN_PAGES == left ? c : 0);
  }
  cr_assert_eq(others, 4 * MU_RUN_PAGES);
  cr_assert_eq(mu_arena.runs[left].in_use, 1);
}

static int no_mprotect(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mprotect ? ENOMEM : 0;
}

Test(global_heap, nothing_is_claimed_when_memory_is_out) {
  void *out[BATCH];
  mu_sys_hook = no_mprotect;
  cr_assert_eq(mu_claim(1, out, BATCH, &model.rng, &(bool){false}), 0);
  mu_sys_hook = NULL;
  check_class(1);
  cr_assert_gt(mu_claim(1, out, BATCH, &model.rng, &(bool){false}), 0);
}

Test(global_heap, slots_come_in_random_order) {
  void *out[32];
  int ascending = 0;
  for (int i = 0; i < 8; i++) {
    uint32_t got = claim(1, out, 32);
    for (uint32_t k = 1; k < got; k++) ascending += out[k] > out[k - 1];
  }
  cr_assert(ascending > 8 * 8 && ascending < 8 * 24, "%d of %d neighbours ascend", ascending, 8 * 31);
}

static uint32_t grown, active;

static void count_growth(size_t pages) {
  cr_assert_eq(pages, MU_RUN_PAGES);
  mu_class_lock(1); /* no lock is held */
  mu_class_unlock(1);
  grown++;
}

static void count_activity(void) {
  mu_class_lock(1);
  mu_class_unlock(1);
  active++;
}

Test(global_heap, growth_and_activity_are_announced_when_the_caller_is_ready) {
  void *out[4];
  bool grew;
  uint64_t rng = 1;
  mu_on_growth = count_growth;
  mu_on_activity = count_activity;
  cr_assert_eq(mu_claim(1, out, 2, &rng, &grew), 2);
  cr_assert(grew);
  cr_assert_eq(grown, 0, "mu_claim itself calls nobody back");
  mu_after_claim(grew);
  cr_assert_eq(grown, 1);
  cr_assert_eq(active, 0);
  atomic_store(&mu_mesher_listens, 1);
  mu_give_back(1, out, 2);
  cr_assert_eq(active, 1);
  cr_assert_eq(mu_claim(1, out, 2, &rng, &grew), 2);
  cr_assert(!grew);
  mu_after_claim(grew);
  cr_assert_eq(active, 2);
  cr_assert_eq(grown, 1);
}

/* ---- misuse ---- */

Test(global_heap, a_double_give_back_aborts, .signal = SIGABRT) {
  void *p;
  claim(3, &p, 1);
  mu_give_back(3, &p, 1);
  mu_give_back(3, &p, 1);
}

Test(global_heap, a_pointer_into_a_slot_aborts, .signal = SIGABRT) {
  void *p;
  claim(3, &p, 1);
  p = (char *)p + 16;
  mu_give_back(3, &p, 1);
}

/* What lies behind a span's last slot is no slot. */
Test(global_heap, the_tail_of_a_span_aborts, .signal = SIGABRT) {
  void *p;
  claim(3, &p, 1);
  size_t page = mu_span_page(mu_run_of(mu_page_of(p)), mu_page_of(p));
  p = (char *)mu_page_address(page) + (size_t)mu_classes[3].slots * mu_classes[3].size;
  mu_give_back(3, &p, 1);
}

/* ---- the validator sees what is wrong ---- */

static struct mu_mini_heap *span_to_spoil(void **p) {
  claim(5, p, 1);
  check_class(5);
  return span_of(*p);
}

#define SPOILED(name, statement)                                                                                       \
  Test(global_heap, validator_sees_##name, .signal = SIGABRT) {                                                        \
    void *p;                                                                                                           \
    struct mu_mini_heap *span = span_to_spoil(&p);                                                                     \
    struct mu_run *run = mu_run_of(mu_page_of(p));                                                                     \
    struct mu_class_heap *h = &mu_class_heaps[5];                                                                      \
    (void)span, (void)run, (void)h;                                                                                    \
    statement;                                                                                                         \
    validate(5);                                                                                                       \
  }

SPOILED(a_set_bit, mu_bit_set(span->bitmap, span->bitmap[0] == 1 ? 1 : 0))
SPOILED(a_wrong_count, span->live++)
SPOILED(a_wrong_bin, span->bin = MU_EMPTY_BIN)
SPOILED(a_wrong_state, span->state = MU_EXTENT_DIRTY)
SPOILED(a_wrong_class, run->size_class = 6)
SPOILED(a_wrong_page_map, mu_arena.page_map[mu_page_of(p)] = 0)
SPOILED(a_wrong_run_sum, run->live++)
SPOILED(a_wrong_use, run->used++)
SPOILED(a_wrong_sum, h->live_slots++)
SPOILED(a_wrong_run_count, h->run_count++)
SPOILED(a_wrong_meshed_sum, h->meshed_slots++)
SPOILED(a_wrong_spare_count, h->spare_runs++)
SPOILED(a_wrong_touched_count, h->touched_empty++)

/* ---- exemption ---- */

Test(global_heap, an_exempt_span_is_so_until_it_is_empty) {
  void *p[2];
  claim(4, p, 2);
  mu_span_mark_aligned(p[0]);
  cr_assert_eq(mu_span_exempt(p[0]), 0);
  cr_assert_eq(mu_span_exempt((char *)p[0] + 16), EINVAL);
  struct mu_mini_heap *span = span_of(p[0]);
  cr_assert(span->exempt && span->flags & MU_MH_ALIGNED);
  give_back(4, p, 1);
  cr_assert(span->exempt);
  cr_assert_eq(mu_span_exempt(p[0]), EINVAL);
  give_back(4, p + 1, 1);
  cr_assert(!span->exempt && !(span->flags & MU_MH_ALIGNED));
  check_class(4);
}

/* ---- passes ---- */

static void close_run(unsigned c, uint32_t r) {
  mu_class_lock(c);
  mu_run_close(r);
  mu_class_unlock(c);
}

static void settle_run(unsigned c, uint32_t r, uint32_t unit_pages, uint64_t meshed) {
  mu_class_lock(c);
  struct mu_packed_place where[MU_RUN_PAGES];
  static uint32_t file;
  if (!file) file = mu_file_new(1, 1);
  for (uint32_t u = 0; u < MU_RUN_PAGES; u++) where[u] = (struct mu_packed_place){file, u};
  mu_run_settle(r, unit_pages, meshed, 0, where);
  mu_class_unlock(c);
}

static unsigned spans_in_state(uint32_t r, enum mu_state state) {
  unsigned n = 0, step = mu_classes[mu_arena.runs[r].size_class].span_pages;
  for (size_t page = (size_t)r * MU_RUN_PAGES; page < (r + (size_t)1) * MU_RUN_PAGES; page += step)
    n += mu_mini_heap(page)->state == state;
  return n;
}

/* A run of the class, with its slots in model.held. */
static uint32_t full_run(unsigned c) {
  model.count = slots_per_run(c);
  claim_all(c, model.held, model.count);
  return run_number(model.held[0]);
}

static void forget_held(uint32_t i) {
  model.held[i] = model.held[--model.count];
}

Test(global_heap, nothing_is_claimed_from_a_closed_run) {
  const unsigned c = 6;
  void *out[BATCH];
  uint32_t r = full_run(c);
  give_back(c, model.held, model.count / 2);
  close_run(c, r);
  check_class(c);
  cr_assert_eq(spans_in_state(r, MU_SPAN_CLOSED), mu_classes[c].spans_per_run);
  for (int i = 0; i < 50; i++) {
    uint32_t got = claim(c, out, BATCH);
    for (uint32_t k = 0; k < got; k++) CHECK(run_number(out[k]) != r, "%p", out[k]);
  }
  cr_assert_eq(mu_span_exempt(model.held[model.count - 1]), EBUSY);
  give_back(c, model.held + model.count / 2, 10);
  check_class(c);
  settle_run(c, r, mu_classes[c].span_pages, 0);
  check_class(c);
  cr_assert_eq(spans_in_state(r, MU_SPAN_OPEN), mu_classes[c].spans_per_run);
  cr_assert_eq(mu_class_heaps[c].meshed_runs, 0);
}

Test(global_heap, a_closed_run_that_empties_goes_when_it_is_settled) {
  const unsigned c = 6;
  void *keeper;
  uint32_t r = full_run(c);
  claim(c, &keeper, 1);
  claim_all(c, model.held + model.count, slots_per_run(c));
  close_run(c, r);
  give_back(c, model.held, model.count);
  give_back(c, model.held + model.count, slots_per_run(c) - 1);
  check_class(c);
  cr_assert_eq(mu_arena.runs[r].in_use, 1, "not while it is closed");
  uint32_t before = mu_class_heaps[c].run_count, spare = mu_class_heaps[c].spare_runs;
  settle_run(c, r, 1, 0);
  check_class(c);
  cr_assert_eq(mu_class_heaps[c].run_count, before - (spare > 1));
}

Test(global_heap, meshed_spans_take_no_more_and_go_with_their_last_object) {
  static const uint8_t classes[] = {1, 3, 11, 21};
  for (size_t i = 0; i < sizeof classes; i++) {
    const unsigned c = classes[i];
    const unsigned spans = mu_classes[c].spans_per_run;
    uint32_t r = full_run(c);
    close_run(c, r);
    settle_run(c, r, mu_classes[c].span_pages, ~(uint64_t)0);
    check_class(c);
    cr_assert_eq(spans_in_state(r, MU_SPAN_MESHED), spans);
    cr_assert_eq(mu_class_heaps[c].meshed_slots, model.count);
    cr_assert_eq(mu_class_heaps[c].meshed_runs, 1);
    cr_assert_eq(mu_span_exempt(model.held[0]), EBUSY);
    memset(mu_page_address((size_t)r * MU_RUN_PAGES), 1, (size_t)MU_RUN_PAGES << mu_arena.page_shift);
    mu_arena.runs[r].mappings = 7;
    atomic_store(&mu_mesh_mappings, 9);
    while (model.count > 1) {
      void *p = model.held[0];
      forget_held(0);
      give_back(c, &p, 1);
      if (model.count % 97 == 0) check_class(c);
    }
    cr_assert_eq(mu_arena.runs[r].in_use, 1);
    give_back(c, model.held, 1);
    cr_assert_eq(mu_arena.runs[r].in_use, 0, "no meshed run is kept");
    cr_assert_eq(mu_class_heaps[c].meshed_runs, 0);
    cr_assert_eq(mu_mesh_mappings, 2);
    check_class(c);
    bool zeroed;
    cr_assert_eq(mu_extent_alloc(MU_RUN_PAGES, MU_RUN_PAGES, &zeroed), (size_t)r * MU_RUN_PAGES);
    cr_assert(zeroed, "it got fresh memory");
    cr_assert_eq(*(char *)mu_page_address((size_t)r * MU_RUN_PAGES), 0);
  }
}

Test(global_heap, the_units_that_were_not_meshed_open_again) {
  const unsigned c = 8, unit_pages = 4;
  const uint64_t meshed = 0x8001;
  void *out[BATCH];
  uint32_t r = full_run(c);
  close_run(c, r);
  settle_run(c, r, unit_pages, meshed);
  check_class(c);
  cr_assert_eq(mu_arena.runs[r].unit_log, 2);
  for (unsigned i = 0; i < MU_RUN_PAGES; i++) {
    bool is = meshed >> (i / unit_pages) & 1;
    cr_assert_eq(mu_arena.page_map[(size_t)r * MU_RUN_PAGES + i], is ? 0 : c);
    cr_assert_eq(mu_mini_heap((size_t)r * MU_RUN_PAGES + i)->state, is ? MU_SPAN_MESHED : MU_SPAN_OPEN);
  }
  /* Slots of the meshed units are not handed out again; those of the others are. */
  give_back(c, model.held, model.count);
  cr_assert_eq(mu_arena.runs[r].in_use, 0);
  check_class(c);
  claim(c, out, BATCH);
  check_class(c);
}

Test(global_heap, slots_of_meshed_spans_are_not_handed_out_again) {
  const unsigned c = 8;
  uint32_t r = full_run(c), kept = 0;
  close_run(c, r);
  settle_run(c, r, 4, 0x00ff);
  for (uint32_t i = 0; i < model.count; i++) {
    void *p = model.held[i];
    if (i % 8 == 0)
      model.held[kept++] = p;
    else
      give_back(c, &p, 1);
  }
  model.count = kept;
  check_class(c);
  for (int i = 0; i < 200; i++) {
    void *p;
    claim(c, &p, 1);
    CHECK(span_of(p)->state == MU_SPAN_OPEN, "%p", p);
  }
  check_class(c);
  cr_assert_eq(mu_arena.runs[r].in_use, 1);
}

static int no_mmap(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mmap ? ENOMEM : 0;
}

Test(global_heap, a_meshed_run_stays_when_it_gets_no_fresh_memory) {
  const unsigned c = 8;
  uint32_t r = full_run(c);
  close_run(c, r);
  settle_run(c, r, 1, ~(uint64_t)0);
  mu_sys_hook = no_mmap;
  give_back(c, model.held, model.count);
  mu_sys_hook = NULL;
  cr_assert_eq(mu_arena.runs[r].in_use, 1);
  check_class(c);
  void *out[BATCH];
  for (int i = 0; i < 20; i++) {
    uint32_t got = claim(c, out, BATCH);
    for (uint32_t k = 0; k < got; k++) CHECK(run_number(out[k]) != r, "%p", out[k]);
  }
  check_class(c);
}

/* ---- passes and give-backs in any order ---- */

static void model_pass(unsigned c) {
  uint32_t runs[64], n = 0;
  for (uint32_t r = mu_class_heaps[c].runs; r && n < 64; r = mu_arena.runs[r].next)
    if (mu_arena.runs[r].used && !mu_arena.runs[r].meshed) runs[n++] = r;
  if (!n) return;
  uint32_t r = runs[below(n)], unit_pages = mu_classes[c].span_pages;
  while (unit_pages < 16 && below(2)) unit_pages *= 2;
  close_run(c, r);
  for (uint32_t i = below(5); i; i--) below(2) ? model_claim(c) : model_give_back(c);
  check_class(c);
  unsigned units = MU_RUN_PAGES / unit_pages;
  uint64_t mask = units == 64 ? ~(uint64_t)0 : ((uint64_t)1 << units) - 1;
  settle_run(c, r, unit_pages, mu_rng_next(&model.rng) & mask & (below(4) ? ~(uint64_t)0 : 0));
}

static void model_empty(unsigned c) {
  uint32_t pages[8], n = mu_empty_take(c, pages, 8, atomic_load(&mu_tick) - below(2));
  check_lists(c);
  for (uint32_t i = below(4); i; i--) below(2) ? model_claim(c) : model_give_back(c);
  check_class(c);
  mu_empty_return(c, pages, n, below(2));
}

static void run_pass_model(unsigned c, uint64_t seed) {
  model.seed = seed;
  model.rng = seed * 0x9E3779B97F4A7C15u + 1;
  for (int step = 0; step < 400; step++) {
    bool growing = step / 80 % 2 == 0;
    uint32_t what = below(20);
    atomic_fetch_add(&mu_tick, what == 0);
    if (what < 2)
      model_pass(c);
    else if (what < 4)
      model_empty(c);
    else
      below(10) < (growing ? 7 : 3) ? model_claim(c) : model_give_back(c);
    MUST(mu_class_heaps[c].live_slots == model.count, "%zu live", SEED, mu_class_heaps[c].live_slots);
    if (step % 10 == 0) check_class(c);
  }
  while (model.count) model_give_back(c);
  check_class(c);
}

Test(global_heap, passes_claims_and_give_backs_in_any_order) {
  static const uint8_t classes[] = {1, 3, 8, 11, 16, 21, 26};
  for (size_t i = 0; i < sizeof classes; i++)
    for (uint64_t seed = 1; seed <= 3; seed++) run_pass_model(classes[i], seed * 100 + i);
}

/* ---- empty spans ---- */

Test(global_heap, empty_spans_are_taken_once_and_come_back) {
  const unsigned c = 16;
  uint32_t pages[MU_RUN_PAGES], more[MU_RUN_PAGES];
  uint32_t r = full_run(c), spans = mu_classes[c].spans_per_run, now = atomic_load(&mu_tick);
  give_back(c, model.held, model.count);
  cr_assert_eq(mu_class_heaps[c].touched_empty, spans);
  cr_assert_eq(mu_empty_take(c, pages, MU_RUN_PAGES, now - 1), 0, "too young");
  cr_assert_eq(mu_empty_take(c, pages, 3, now), 3);
  cr_assert_eq(mu_empty_take(c, more, MU_RUN_PAGES, now), spans - 3);
  cr_assert_eq(mu_empty_take(c, more + spans, 1, now), 0);
  for (uint32_t i = 0; i < 3; i++) {
    cr_assert_eq(mu_mini_heap(pages[i])->state, MU_SPAN_CLOSED);
    for (uint32_t k = 0; k < spans - 3; k++) cr_assert_neq(pages[i], more[k]);
  }
  check_class(c);
  void *p;
  claim(c, &p, 1);
  cr_assert_neq(run_number(p), r, "a span that is being dropped is not claimed from");
  mu_empty_return(c, pages, 3, true);
  check_class(c);
  mu_empty_return(c, more, spans - 3, false);
  check_class(c);
  give_back(c, &p, 1);
  check_class(c);
  cr_assert_eq(mu_class_heaps[c].run_count, 1);
}

Test(global_heap, the_spans_that_were_emptied_first_are_taken_first) {
  const unsigned c = 16;
  uint32_t pages[MU_RUN_PAGES], spans = mu_classes[c].spans_per_run, per_span = mu_classes[c].slots;
  full_run(c);
  for (uint32_t i = 0; i < spans; i++) {
    atomic_store(&mu_tick, 10 + i);
    give_back(c, model.held + (size_t)i * per_span, per_span);
  }
  cr_assert_eq(mu_empty_take(c, pages, MU_RUN_PAGES, 9), 0);
  cr_assert_eq(mu_empty_take(c, pages, MU_RUN_PAGES, 12), 3);
  for (uint32_t i = 0; i < 3; i++)
    cr_assert_eq(mu_page_address(pages[i]),
                 mu_page_address(
                     mu_span_page(mu_run_of(mu_page_of(model.held[0])), mu_page_of(model.held[(size_t)i * per_span]))));
  mu_empty_return(c, pages, 3, true);
  check_class(c);
}

Test(global_heap, a_dropped_span_is_not_dropped_again_before_it_is_used) {
  const unsigned c = 16;
  uint32_t pages[MU_RUN_PAGES], now = atomic_load(&mu_tick);
  full_run(c);
  give_back(c, model.held, model.count);
  uint32_t n = mu_empty_take(c, pages, MU_RUN_PAGES, now);
  mu_empty_return(c, pages, n, true);
  cr_assert_eq(mu_class_heaps[c].touched_empty, 0);
  cr_assert_eq(mu_empty_take(c, pages, MU_RUN_PAGES, now), 0);
  void *p;
  claim(c, &p, 1);
  give_back(c, &p, 1);
  check_class(c);
  cr_assert_eq(mu_empty_take(c, pages, MU_RUN_PAGES, now), 1);
  mu_empty_return(c, pages, 1, true);
  check_class(c);
}

Test(global_heap, empty_spans_of_a_meshed_run_keep_it_while_they_are_out) {
  const unsigned c = 8;
  uint32_t pages[MU_RUN_PAGES], kept = 0, r = full_run(c);
  close_run(c, r);
  settle_run(c, r, 1, 1);
  for (uint32_t i = 0; i < model.count; i++) {
    void *p = model.held[i];
    if (span_of(p)->state == MU_SPAN_MESHED)
      model.held[kept++] = p;
    else
      give_back(c, &p, 1);
  }
  uint32_t n = mu_empty_take(c, pages, MU_RUN_PAGES, atomic_load(&mu_tick));
  cr_assert_eq(n, mu_classes[c].spans_per_run - 1);
  give_back(c, model.held, kept);
  cr_assert_eq(mu_arena.runs[r].in_use, 1);
  check_class(c);
  mu_empty_return(c, pages, n, true);
  check_class(c);
}

/* ---- thin tables ------------------------------------------------------------------------------------------------- */

struct seen {
  struct mu_packed_place place;
  uint8_t state, live;
  uint64_t bitmap;
};

static void look_at(uint32_t r, unsigned unit_pages, struct seen seen[MU_RUN_PAGES]) {
  const struct mu_size_class *k = &mu_classes[mu_arena.runs[r].size_class];
  for (unsigned i = 0; i < k->spans_per_run; i++) {
    const struct mu_mini_heap *m = mu_mini_heap((size_t)r * MU_RUN_PAGES + i * k->span_pages);
    seen[i] = (struct seen){mu_unit_place(r, unit_pages, i * k->span_pages / unit_pages), m->state, (uint8_t)m->live,
                            m->bitmap[0]};
  }
}

static void check_seen(uint32_t r, unsigned unit_pages, const struct seen *was) {
  struct seen is[MU_RUN_PAGES];
  look_at(r, unit_pages, is);
  for (unsigned i = 0; i < mu_classes[mu_arena.runs[r].size_class].spans_per_run; i++) {
    MUST(is[i].place.file == was[i].place.file && is[i].place.unit == was[i].place.unit, "span %u", SEED, i);
    MUST(is[i].state == was[i].state && is[i].live == was[i].live && is[i].bitmap == was[i].bitmap, "span %u", SEED, i);
  }
}

/* Places follow one another in stretches, as they do in a pass. */
static void settle_in_stretches(unsigned c, uint32_t r, uint32_t unit_pages, uint64_t meshed) {
  struct mu_packed_place where[MU_RUN_PAGES];
  uint32_t files[] = {mu_file_new(c, unit_pages), mu_file_new(c, unit_pages)}, unit = below(9), file = 0;
  for (uint32_t u = 0; u < MU_RUN_PAGES; u++, unit++) {
    if (below(3) == 0) file = below(2), unit = below(100);
    where[u] = (struct mu_packed_place){files[file], unit};
  }
  mu_class_lock(c);
  mu_run_settle(r, unit_pages, meshed, 0, where);
  mu_class_unlock(c);
}

static void free_some(unsigned c, uint32_t left) {
  while (model.count > left) {
    uint32_t i = below(model.count);
    void *p = model.held[i];
    forget_held(i);
    give_back(c, &p, 1);
  }
}

static bool thicken(unsigned c, uint32_t r) {
  mu_class_lock(c);
  bool done = mu_run_thicken(r);
  mu_class_unlock(c);
  return done;
}

static int no_memory(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mprotect ? ENOMEM : 0;
}

Test(global_heap, a_thin_table_says_what_the_whole_one_does) {
  static const struct { uint8_t size_class, unit_pages; } shapes[] = {{8, 1}, {8, 4}, {11, 2}, {13, 16}};
  struct seen seen[MU_RUN_PAGES];
  for (model.seed = 1; model.seed <= 200; model.seed++) {
    model.rng = model.seed;
    const unsigned c = shapes[model.seed % 4].size_class,
                   unit_pages = (unsigned)mu_max(shapes[model.seed % 4].unit_pages, mu_classes[c].span_pages);
    uint32_t r = full_run(c);
    struct mu_run *run = &mu_arena.runs[r];
    close_run(c, r);
    free_some(c, 1 + below(150));
    settle_in_stretches(c, r, unit_pages, ~(uint64_t)0 >> below(40));
    for (uint32_t left = model.count; left; left /= 2) {
      free_some(c, left);
      look_at(r, unit_pages, seen);
      uint64_t shown = mu_pages_shown;
      uint8_t thin = run->thin;
      mu_reap_runs(c);
      check_seen(r, unit_pages, seen);
      check_class(c);
      MUST(mu_pages_shown <= shown, "%zu", SEED, (size_t)mu_pages_shown);
      MUST(run->thin <= mu_classes[c].spans_per_run && (!thin || run->thin <= thin), "%u", SEED, run->thin);
      for (uint32_t i = 0; i < model.count; i++)
        MUST(mu_slot_is(model.held[i]) == MU_SLOT_LIVE, "%p", SEED, model.held[i]);
      if (below(2)) continue;
      MUST(thicken(c, r) && !run->thin, "run %u", SEED, r);
      check_seen(r, unit_pages, seen);
      check_class(c);
    }
    MUST(!run->in_use || run->used == 1, "run %u", SEED, r);
    free_some(c, 0);
    check_class(c);
  }
}

Test(global_heap, a_run_without_memory_for_its_whole_table_keeps_the_thin_one) {
  const unsigned c = 8;
  uint32_t first = full_run(c), r = full_run(c); /* a class's first table is kept for it */
  (void)first;
  model.rng = model.seed = 1;
  close_run(c, r);
  free_some(c, 3);
  settle_run(c, r, 1, ~(uint64_t)0);
  cr_assert_neq(mu_arena.runs[r].thin, 0);
  mu_sys_hook = no_memory;
  void *tables[1000];
  uint32_t n = 0;
  mu_class_lock(c);
  while (n < 1000 && (tables[n] = mu_span_table_alloc(c))) n++;
  mu_class_unlock(c);
  cr_assert_lt(n, 1000);
  cr_assert_not(thicken(c, r));
  check_class(c);
  mu_class_lock(c);
  mu_span_table_free(c, tables[0]);
  mu_class_unlock(c);
  cr_assert(thicken(c, r));
  mu_sys_hook = NULL;
  check_class(c);
}

/* In a child whose parent's thread was at work there: nothing of it is used any more, or lost sight of. */
Test(global_heap, thin_tables_whose_memory_is_lost_stay_as_they_are) {
  const unsigned c = 8;
  full_run(c);
  uint32_t r = full_run(c);
  model.rng = model.seed = 1;
  close_run(c, r);
  free_some(c, 20);
  settle_run(c, r, 1, ~(uint64_t)0);
  uint8_t thin = mu_arena.runs[r].thin;
  cr_assert_neq(thin, 0);
  mu_span_tables_lost();
  free_some(c, 2);
  mu_reap_runs(c);
  check_class(c);
  cr_assert_eq(mu_arena.runs[r].thin, thin);
  free_some(c, 0);
  check_class(c);
  cr_assert_eq(mu_arena.runs[r].in_use, 0);
}
