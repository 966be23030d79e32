/* SPDX-License-Identifier: Apache-2.0 */
#include "src/mesh_search.h"
#include "src/rng.h"

#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* What a plan has to satisfy, for random inputs: every seed is another input. */

enum { SEEDS = 300, MAX_TINY_UNITS = 9 };

struct fixture {
  struct mu_mesh_search s;
  uint64_t *live, *empty, *targets_before;
  uint32_t *pages;
  uint32_t units;
};

static uint64_t random_state;

static void seed_random(uint64_t seed) {
  random_state = seed * 0x9E3779B97F4A7C15u + 1;
}

static uint32_t random_below(uint32_t bound) {
  return mu_rng_below(&random_state, bound);
}

static void random_bits(uint64_t *bits, uint32_t slots, uint32_t percent) {
  for (uint32_t i = 0; i < slots; i++)
    if (random_below(100) < percent) bits[i / 64] |= UINT64_C(1) << i % 64;
}

static uint32_t count_bits(const uint64_t *bits, uint32_t words) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < words; i++) n += (uint32_t)__builtin_popcountll(bits[i]);
  return n;
}

static bool disjoint(const uint64_t *a, const uint64_t *b, uint32_t words) {
  for (uint32_t i = 0; i < words; i++)
    if (a[i] & b[i]) return false;
  return true;
}

static uint64_t *bits_of(const struct fixture *f, uint32_t unit) {
  return f->live + (size_t)unit * f->s.words;
}

static void allocate_outputs(struct fixture *f) {
  struct mu_mesh_search *s = &f->s;
  s->packed = calloc((size_t)(s->targets + f->units) * s->words, sizeof *s->packed);
  s->packed_live = calloc(s->targets + f->units, sizeof *s->packed_live);
  s->choice = calloc(f->units, sizeof *s->choice);
  s->role = calloc(s->runs, sizeof *s->role);
  s->anchor_base = calloc(s->runs, sizeof *s->anchor_base);
  s->order = calloc(f->units, sizeof *s->order);
  s->work = calloc(f->units, sizeof *s->work);
  s->rows = calloc(mu_room_index_words(s->targets + f->units, s->words) + 1, sizeof *s->rows);
}

static void fill_inputs(struct fixture *f, uint32_t slots, uint32_t percent, uint32_t max_pages) {
  struct mu_mesh_search *s = &f->s;
  f->live = calloc((size_t)f->units * s->words, sizeof *f->live);
  f->pages = calloc(f->units, sizeof *f->pages);
  for (uint32_t unit = 0; unit < f->units; unit++) {
    random_bits(bits_of(f, unit), slots, percent);
    f->pages[unit] = max_pages > 1 ? random_below(max_pages + 1) : 1;
  }
  s->live = f->live;
  s->pages = f->pages;
}

/* Some of the units without a live slot may go along. */
static void fill_empty(struct fixture *f) {
  f->empty = calloc(f->s.runs, sizeof *f->empty);
  for (uint32_t unit = 0; unit < f->units; unit++)
    if (!count_bits(bits_of(f, unit), f->s.words) && random_below(4))
      f->empty[unit / f->s.units_per_run] |= UINT64_C(1) << unit % f->s.units_per_run;
  f->s.empty = f->empty;
}

static void fill_targets(struct fixture *f, uint32_t slots, uint32_t percent) {
  struct mu_mesh_search *s = &f->s;
  size_t words = (size_t)s->targets * s->words;
  f->targets_before = calloc(words + 1, sizeof *f->targets_before);
  for (uint32_t i = 0; i < s->targets; i++) {
    uint64_t *bits = s->packed + (size_t)i * s->words;
    random_bits(bits, slots, percent);
    s->packed_live[i] = count_bits(bits, s->words);
  }
  memcpy(f->targets_before, s->packed, words * sizeof *s->packed);
}

static struct fixture random_input(uint64_t seed) {
  seed_random(seed);
  struct fixture f = {.s = {.runs = 1 + random_below(seed % 10 ? 40 : 600),
                            .units_per_run = 1 + random_below(20),
                            .words = 1 + random_below(seed % 3 ? 1 : 9),
                            .targets = random_below(2) ? random_below(200) : 0,
                            .probes = 1 + random_below(80),
                            .min_pages_per_anchor = random_below(2) ? random_below(40) : 1,
                            .min_pages_per_join = random_below(3),
                            .seed = seed}};
  uint32_t slots = f.s.words * 64 - random_below(60),
           percent = random_below(2) ? 1 + random_below(8) : random_below(50);
  f.units = f.s.runs * f.s.units_per_run;
  f.s.unit_pages = 1 + random_below(4);
  allocate_outputs(&f);
  fill_inputs(&f, slots, percent, f.s.unit_pages);
  fill_targets(&f, slots, percent);
  if (random_below(2)) fill_empty(&f);
  return f;
}

static void free_input(struct fixture *f) {
  void *all[] = {f->live,     f->pages,  f->targets_before, f->s.packed, f->s.packed_live, f->empty,
                 f->s.choice, f->s.role, f->s.anchor_base,  f->s.order,  f->s.work,        f->s.rows};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static void for_each_seed(void (*check)(const struct fixture *)) {
  for (uint64_t seed = 0; seed < SEEDS; seed++) {
    struct fixture f = random_input(seed);
    mu_mesh_search(&f.s);
    check(&f);
    free_input(&f);
  }
}

static bool goes(const struct fixture *f, uint32_t unit) {
  return f->s.choice[unit] != MU_UNIT_STAYS;
}
static bool joins(const struct fixture *f, uint32_t unit) {
  return goes(f, unit) && count_bits(bits_of(f, unit), f->s.words);
}

/* What packed[] must be: targets as they were, then the anchors' units, then all joiners added. */
static uint64_t *expected_packed(const struct fixture *f) {
  const struct mu_mesh_search *s = &f->s;
  uint64_t *packed = calloc((size_t)(s->targets + f->units) * s->words, sizeof *packed);
  memcpy(packed, f->targets_before, (size_t)s->targets * s->words * sizeof *packed);
  for (uint32_t run = 0; run < s->runs; run++)
    if (s->role[run] == MU_RUN_ANCHOR)
      memcpy(packed + (size_t)s->anchor_base[run] * s->words, bits_of(f, run * s->units_per_run),
             (size_t)s->units_per_run * s->words * sizeof *packed);
  return packed;
}

static void check_packed(const struct fixture *f) {
  const struct mu_mesh_search *s = &f->s;
  uint64_t *packed = expected_packed(f);
  for (uint32_t unit = 0; unit < f->units; unit++) {
    if (!joins(f, unit)) continue;
    cr_assert_lt(s->choice[unit], s->targets + s->founded);
    uint64_t *into = packed + (size_t)s->choice[unit] * s->words;
    cr_assert(disjoint(into, bits_of(f, unit), s->words), "unit %u overlaps its target or another joiner", unit);
    for (uint32_t i = 0; i < s->words; i++) into[i] |= bits_of(f, unit)[i];
  }
  cr_assert_arr_eq(s->packed, packed, (size_t)(s->targets + s->founded) * s->words * sizeof *packed);
  for (uint32_t i = 0; i < s->targets + s->founded; i++)
    cr_assert_eq(s->packed_live[i], count_bits(packed + (size_t)i * s->words, s->words));
  free(packed);
}

Test(mesh_search, joined_units_are_disjoint_and_packed_is_their_union) {
  for_each_seed(check_packed);
}

static void check_roles(const struct fixture *f) {
  const struct mu_mesh_search *s = &f->s;
  for (uint32_t run = 0; run < s->runs; run++) {
    uint32_t joined = 0;
    for (uint32_t u = 0; u < s->units_per_run; u++) joined += joins(f, run * s->units_per_run + u);
    cr_assert_eq(joined > 0, s->role[run] == MU_RUN_EVACUATED, "run %u: %u join, role %d", run, joined, s->role[run]);
  }
}

Test(mesh_search, exactly_evacuated_runs_have_joining_units) {
  for_each_seed(check_roles);
}

static void check_numbering(const struct fixture *f) {
  const struct mu_mesh_search *s = &f->s;
  uint32_t anchors = 0;
  bool *taken = calloc(s->runs, sizeof *taken);
  for (uint32_t run = 0; run < s->runs; run++) {
    if (s->role[run] != MU_RUN_ANCHOR) continue;
    uint32_t place = (s->anchor_base[run] - s->targets) / s->units_per_run;
    cr_assert_eq(s->anchor_base[run], s->targets + place * s->units_per_run);
    cr_assert_lt(place, s->runs);
    cr_assert(!taken[place]);
    taken[place] = true;
    anchors++;
  }
  cr_assert_eq(s->founded, anchors * s->units_per_run);
  for (uint32_t place = 0; place < anchors; place++) cr_assert(taken[place]);
  free(taken);
}

Test(mesh_search, anchors_are_numbered_without_holes) {
  for_each_seed(check_numbering);
}

static void check_anchor_gains(const struct fixture *f) {
  const struct mu_mesh_search *s = &f->s;
  uint64_t *gain = calloc(s->targets + f->units, sizeof *gain);
  for (uint32_t unit = 0; unit < f->units; unit++)
    if (joins(f, unit)) gain[s->choice[unit]] += s->pages[unit];
  for (uint32_t run = 0; run < s->runs; run++) {
    uint64_t sum = 0;
    if (s->role[run] != MU_RUN_ANCHOR) continue;
    for (uint32_t u = 0; u < s->units_per_run; u++) sum += gain[s->anchor_base[run] + u];
    cr_assert_geq(sum, s->min_pages_per_anchor);
    cr_assert_gt(sum, 0);
  }
  free(gain);
}

Test(mesh_search, anchors_gain_their_minimum) {
  for_each_seed(check_anchor_gains);
}

static void check_joins(const struct fixture *f) {
  const struct mu_mesh_search *s = &f->s;
  uint64_t saved = 0;
  for (uint32_t unit = 0; unit < f->units; unit++) {
    if (!joins(f, unit)) continue;
    cr_assert_geq(s->pages[unit], s->min_pages_per_join);
    cr_assert_gt(s->pages[unit], 0);
    cr_assert_gt(count_bits(bits_of(f, unit), s->words), 0);
    cr_assert_gt(s->packed_live[s->choice[unit]], count_bits(bits_of(f, unit), s->words), "joined an empty one");
    saved += s->pages[unit];
  }
  cr_assert_eq(s->pages_saved, saved);
}

Test(mesh_search, every_join_is_worth_it_and_counted) {
  for_each_seed(check_joins);
}

Test(mesh_search, same_seed_same_plan) {
  for (uint64_t seed = 0; seed < SEEDS; seed += 10) {
    struct fixture a = random_input(seed), b = random_input(seed);
    memset(b.s.order, 0x5a, b.units * sizeof *b.s.order);
    memset(b.s.work, 0xa5, b.units * sizeof *b.s.work);
    mu_mesh_search(&a.s);
    mu_mesh_search(&b.s);
    cr_assert_arr_eq(a.s.choice, b.s.choice, a.units * sizeof *a.s.choice);
    cr_assert_arr_eq(a.s.role, b.s.role, a.s.runs);
    cr_assert_eq(a.s.pages_saved, b.s.pages_saved);
    free_input(&a);
    free_input(&b);
  }
}

Test(mesh_search, nothing_offered_nothing_done) {
  struct mu_mesh_search s = {.units_per_run = 64, .words = 1, .probes = 64};
  mu_mesh_search(&s);
  cr_assert_eq(s.founded, 0);
  cr_assert_eq(s.pages_saved, 0);
}

/* Whether the next unit goes to the next place. */
static bool on_with_next(const struct fixture *f, uint32_t unit) {
  return (unit + 1) % f->s.units_per_run && goes(f, unit) && f->s.choice[unit + 1] == f->s.choice[unit] + 1;
}

static void check_empty(const struct fixture *f) {
  const struct mu_mesh_search *s = &f->s;
  for (uint32_t unit = 0; unit < f->units; unit++) {
    if (!goes(f, unit) || joins(f, unit)) continue;
    cr_assert(s->empty && (s->empty[unit / s->units_per_run] >> unit % s->units_per_run & 1));
    cr_assert_lt(s->choice[unit], s->targets + s->founded);
    uint32_t first = unit, last = unit;
    while (first % s->units_per_run && on_with_next(f, first - 1)) first--;
    while (on_with_next(f, last)) last++;
    bool any = false;
    for (uint32_t u = first; u <= last; u++) any |= joins(f, u);
    cr_assert(any, "an empty unit goes alone");
  }
}

/* Units of more live slots than the index looks at, and packed units where only the last of these are in the way. */
Test(mesh_search, very_full_units_join_only_what_has_room) {
  enum { WORDS = 40, UNITS = 8, TARGETS = 30, FULL_WORDS = 10, KINDS = 4 };
  for (uint64_t seed = 1; seed <= 20; seed++) {
    seed_random(seed);
    struct fixture f = {.s = {.runs = UNITS, .units_per_run = 1, .words = WORDS, .unit_pages = 1, .targets = TARGETS}};
    f.s.probes = TARGETS;
    f.units = UNITS;
    allocate_outputs(&f);
    fill_inputs(&f, 0, 0, 1);
    for (uint32_t unit = 0; unit < UNITS; unit++) {
      memset(bits_of(&f, unit), 0xff, FULL_WORDS * sizeof(uint64_t));
      bits_of(&f, unit)[WORDS - 1] = UINT64_C(1) << random_below(KINDS);
    }
    for (uint32_t i = 0; i < TARGETS; i++)
      f.s.packed[(size_t)i * WORDS + WORDS - 1] = UINT64_C(1) << random_below(KINDS);
    fill_targets(&f, 0, 0);
    mu_mesh_search(&f.s);
    cr_assert_gt(f.s.pages_saved, 0);
    check_packed(&f);
    check_joins(&f);
    free_input(&f);
  }
}

Test(mesh_search, empty_units_go_along_and_never_alone) {
  for_each_seed(check_empty);
}

/* The optimum by exhaustion: every set of anchor runs, every assignment. */

struct exhaustion {
  const struct fixture *f;
  uint32_t anchors; /* a bit for each run */
  uint64_t packed[MAX_TINY_UNITS];
};

static bool is_anchor(const struct exhaustion *e, uint32_t unit) {
  return e->anchors >> unit / e->f->s.units_per_run & 1;
}

static uint64_t best_from(struct exhaustion *e, uint32_t unit) {
  if (unit == e->f->units) return 0;
  uint64_t best = best_from(e, unit + 1), bits = e->f->live[unit];
  if (is_anchor(e, unit) || !bits) return best;
  for (uint32_t i = 0; i < e->f->units; i++) {
    if (!is_anchor(e, i) || !e->packed[i] || e->packed[i] & bits) continue;
    e->packed[i] |= bits;
    uint64_t saved = e->f->pages[unit] + best_from(e, unit + 1);
    e->packed[i] &= ~bits;
    if (saved > best) best = saved;
  }
  return best;
}

static uint64_t optimum(const struct fixture *f) {
  uint64_t best = 0;
  for (uint32_t anchors = 0; anchors < 1u << f->s.runs; anchors++) {
    struct exhaustion e = {.f = f, .anchors = anchors};
    memcpy(e.packed, f->live, f->units * sizeof *f->live);
    uint64_t saved = best_from(&e, 0);
    if (saved > best) best = saved;
  }
  return best;
}

static struct fixture tiny_input(uint64_t seed) {
  seed_random(seed);
  struct fixture f = {.s = {.units_per_run = 1 + random_below(3), .words = 1, .unit_pages = 1, .probes = 64}};
  f.s.runs = MAX_TINY_UNITS / f.s.units_per_run - random_below(2);
  f.units = f.s.runs * f.s.units_per_run;
  allocate_outputs(&f);
  fill_inputs(&f, 6, 15 + random_below(30), 1);
  fill_targets(&f, 6, 0);
  return f;
}

Test(mesh_search, tiny_inputs_come_near_the_optimum) {
  uint64_t saved = 0, possible = 0;
  for (uint64_t seed = 0; seed < SEEDS; seed++) {
    struct fixture f = tiny_input(seed);
    mu_mesh_search(&f.s);
    uint64_t best = optimum(&f);
    cr_assert_leq(f.s.pages_saved, best);
    saved += f.s.pages_saved;
    possible += best;
    free_input(&f);
  }
  cr_assert_geq(saved * 100, possible * 85, "%zu of %zu pages", (size_t)saved, (size_t)possible);
}

/* Sixteen slots a page, 18 % of them live: near live slots / 16, and with fewer than half as many mappings as
 * units that join: neighbours go together. */

static struct fixture large_input(uint32_t full_runs) {
  seed_random(1);
  struct fixture f = {.s = {.runs = 400, .units_per_run = 64, .words = 1, .unit_pages = 1, .probes = 4096, .seed = 1}};
  f.units = f.s.runs * f.s.units_per_run;
  allocate_outputs(&f);
  fill_inputs(&f, 16, 18, 1);
  fill_targets(&f, 16, 0);
  for (uint32_t unit = 0; unit < full_runs * f.s.units_per_run; unit++) f.live[unit] = 0xfffe;
  return f;
}

static void check_near_floor(uint32_t full_runs, uint32_t percent) {
  struct fixture f = large_input(full_runs);
  uint64_t slots = 0, left = 0, joined = 0, mappings = 0;
  mu_mesh_search(&f.s);
  for (uint32_t unit = full_runs * f.s.units_per_run; unit < f.units; unit++) {
    slots += count_bits(bits_of(&f, unit), 1);
    left += f.live[unit] != 0 && !joins(&f, unit);
    joined += joins(&f, unit);
    mappings += goes(&f, unit) && !on_with_next(&f, unit);
  }
  cr_assert_lt(left * 16 * 100, slots * percent, "%zu pages for %zu slots", (size_t)left, (size_t)slots);
  cr_assert_lt(mappings * 2, joined, "%zu mappings for %zu units", (size_t)mappings, (size_t)joined);
  free_input(&f);
}

Test(mesh_search, random_occupancy_comes_near_the_floor) {
  check_near_floor(0, 108);
}

Test(mesh_search, nearly_full_runs_do_not_stand_in_the_way) {
  check_near_floor(200, 115);
}
