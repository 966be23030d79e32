/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How many runs should be anchors decides almost everything: one too many wastes its pages, one too few leaves units
 * without room. So the share of anchors is first tried out on a sample of the runs, then applied to all of them. Runs
 * become anchors fullest first, since their units are the hardest to place; units join fullest first, each the fullest
 * packed unit with room among those probed.
 *
 * A packed unit with no live slot has no physical page yet, so its first joiner would give back nothing: it is never
 * joined. That makes pages_saved the true net gain.
 */
#include "src/mesh_search.h"

#include <stdbool.h>
#include <string.h>

enum {
  ROUGH_SAMPLE = 64,  /* runs that the share of anchors is searched with */
  FINE_SAMPLE = 256,  /* runs that it is refined with */
  LAST_SAMPLE = 1024, /* runs that fewer are tried with */
  FEWER = 8,          /* anchors, at a time */
  COARSE_STEPS = 8,   /* shares tried before the best is refined */
  KEYS = 1024,        /* buckets of the counting sorts */
  PLACES = 1024,      /* packed units with room that the best is chosen of */
  TRIAL_PLACES = 16,  /* for trials: more would save mappings, hardly pages */
  MOST_ALONG = 64,
  USELESS_SHARE = 8, /* an anchor that gains less than this fraction of the average is as good as full */
};

struct plan {
  struct mu_mesh_search *s;
  uint32_t *ranked;    /* runs, fullest first; then the runs of the anchors by number */
  uint32_t sample;     /* runs looked at now: evenly spread over ranked[] */
  uint32_t candidates; /* units in s->order */
  uint32_t first, end; /* packed units probed now */
  uint32_t places;     /* that are compared for each unit */
  uint64_t random;
  struct mu_room_index room;
};

/* The anchors are the sample's runs number skip to skip + count. */
struct choice_of_anchors {
  uint32_t skip, count;
  uint64_t saved;
};

static uint64_t next_random(struct plan *p) {
  uint64_t z = p->random += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

static uint32_t random_below(struct plan *p, uint32_t bound) {
  return (uint32_t)(((next_random(p) >> 32) * bound) >> 32);
}

static uint32_t smaller(uint32_t a, uint32_t b) {
  return a < b ? a : b;
}

static uint32_t at_least_one(uint32_t n) {
  return n ? n : 1;
}

static uint32_t scale(uint32_t n, uint32_t to, uint32_t from) {
  return (uint32_t)((uint64_t)n * to / from);
}

static const uint64_t *unit_bits(const struct mu_mesh_search *s, uint32_t unit) {
  return s->live + (size_t)unit * s->words;
}

static uint64_t *packed_bits(const struct mu_mesh_search *s, uint32_t packed) {
  return s->packed + (size_t)packed * s->words;
}

static uint32_t count_bits(const uint64_t *bits, size_t words) {
  uint32_t n = 0;
  for (size_t i = 0; i < words; i++) n += (uint32_t)__builtin_popcountll(bits[i]);
  return n;
}

static uint32_t unit_live(const struct mu_mesh_search *s, uint32_t unit) {
  return count_bits(unit_bits(s, unit), s->words);
}

static uint32_t run_live(const struct mu_mesh_search *s, uint32_t run) {
  return count_bits(unit_bits(s, run * s->units_per_run), (size_t)s->units_per_run * s->words);
}

static uint32_t sampled_run(const struct plan *p, uint32_t i) {
  return p->ranked[scale(i, p->s->runs, p->sample)];
}

/* Counting sorts, fullest first. */

static uint32_t shift_to_key(uint64_t max_live) {
  uint32_t shift = 0;
  while (max_live >> shift >= KEYS) shift++;
  return shift;
}

static void counts_to_places(uint32_t place[KEYS]) {
  uint32_t before = 0;
  for (uint32_t key = KEYS; key-- > 0;) {
    uint32_t n = place[key];
    place[key] = before;
    before += n;
  }
}

static void rank_runs(struct plan *p) {
  const struct mu_mesh_search *s = p->s;
  uint32_t place[KEYS] = {0};
  uint32_t shift = shift_to_key((uint64_t)s->units_per_run * s->words * 64);
  for (uint32_t run = 0; run < s->runs; run++) {
    s->work[run] = run_live(s, run) >> shift;
    place[s->work[run]]++;
  }
  counts_to_places(place);
  for (uint32_t run = 0; run < s->runs; run++) p->ranked[place[s->work[run]]++] = run;
}

static uint32_t candidate_live(const struct mu_mesh_search *s, uint32_t unit) {
  return s->pages[unit] >= at_least_one(s->min_pages_per_join) ? unit_live(s, unit) : 0;
}

static void count_candidates(struct plan *p, uint32_t run, uint32_t shift, uint32_t place[KEYS]) {
  const struct mu_mesh_search *s = p->s;
  for (uint32_t unit = run * s->units_per_run, u = 0; u < s->units_per_run; u++, unit++) {
    s->work[unit] = candidate_live(s, unit);
    if (!s->work[unit]) continue;
    place[s->work[unit] >> shift]++;
    p->candidates++;
  }
}

static void place_candidates(const struct plan *p, uint32_t run, uint32_t shift, uint32_t place[KEYS]) {
  const struct mu_mesh_search *s = p->s;
  for (uint32_t unit = run * s->units_per_run, u = 0; u < s->units_per_run; u++, unit++)
    if (s->work[unit]) s->order[place[s->work[unit] >> shift]++] = unit;
}

static void take_sample(struct plan *p, uint32_t sample) {
  uint32_t place[KEYS] = {0};
  uint32_t shift = shift_to_key((uint64_t)p->s->words * 64);
  p->sample = sample;
  p->candidates = 0;
  for (uint32_t i = 0; i < sample; i++) count_candidates(p, sampled_run(p, i), shift, place);
  counts_to_places(place);
  for (uint32_t i = 0; i < sample; i++) place_candidates(p, sampled_run(p, i), shift, place);
}

static bool overlap(const uint64_t *a, const uint64_t *b, uint32_t words) {
  uint64_t both = 0;
  for (uint32_t i = 0; i < words; i++) both |= a[i] & b[i];
  return both;
}

/* Joining and leaving: slots in a packed unit are disjoint, so taking a unit's out again is exact. */

static void toggle(const struct mu_mesh_search *s, uint32_t unit, uint32_t packed) {
  const uint64_t *bits = unit_bits(s, unit);
  uint64_t *into = packed_bits(s, packed);
  for (uint32_t i = 0; i < s->words; i++) into[i] ^= bits[i];
}

static void join(struct plan *p, uint32_t unit, uint32_t packed) {
  const struct mu_mesh_search *s = p->s;
  toggle(s, unit, packed);
  mu_room_index_take(&p->room, packed, unit_bits(s, unit));
  s->packed_live[packed] += unit_live(s, unit);
  s->choice[unit] = packed;
}

static void leave(struct plan *p, uint32_t unit) {
  const struct mu_mesh_search *s = p->s;
  uint32_t packed = s->choice[unit];
  toggle(s, unit, packed);
  mu_room_index_release(&p->room, packed, unit_bits(s, unit));
  s->packed_live[packed] -= unit_live(s, unit);
  s->choice[unit] = MU_UNIT_STAYS;
}

/*
 * Stretches. Units of a run that go to neighbouring packed units, one after the other, need one mapping together. So
 * where a unit has a choice, the place is taken that lets the most of its neighbours go along. Units without a live
 * slot go along anywhere, even where no packed unit is yet.
 */

static bool is_empty(const struct mu_mesh_search *s, uint32_t unit) {
  return s->empty && (s->empty[unit / s->units_per_run] >> unit % s->units_per_run & 1);
}

static bool is_candidate(const struct mu_mesh_search *s, uint32_t unit) {
  return s->choice[unit] == MU_UNIT_STAYS && candidate_live(s, unit);
}

/* Not for what has no live slot. */
static bool has_room(const struct plan *p, uint32_t unit, uint32_t packed) {
  const struct mu_mesh_search *s = p->s;
  return s->packed_live[packed] && !overlap(packed_bits(s, packed), unit_bits(s, unit), s->words);
}

/* Units from `unit` on, in the direction of `step`, that may go along. */
static uint32_t along(const struct plan *p, uint32_t unit, uint32_t packed, int step) {
  const struct mu_mesh_search *s = p->s;
  uint32_t u = unit % s->units_per_run, n = 0;
  uint32_t room = step > 0 ? p->end - 1 - packed : packed - p->first;
  uint32_t most = smaller(step > 0 ? s->units_per_run - 1 - u : u, smaller(room, MOST_ALONG));
  while (n < most) {
    uint32_t next = unit + (uint32_t)step * (n + 1), to = packed + (uint32_t)step * (n + 1);
    if (s->choice[next] != MU_UNIT_STAYS)
      return n + (s->choice[next] == to); /* one mapping with those that are there */
    if (!is_empty(s, next) && !(is_candidate(s, next) && has_room(p, next, to))) break;
    n++;
  }
  return n;
}

/* How good a place is: mappings it saves, then fullness. */
static uint64_t value_of(const struct plan *p, uint32_t unit, uint32_t packed) {
  uint64_t merged = along(p, unit, packed, 1) + along(p, unit, packed, -1);
  return (merged + 1) << 32 | p->s->packed_live[packed];
}

static uint32_t best_place(const struct plan *p, uint32_t unit, const uint32_t *places, uint32_t n) {
  uint32_t best = MU_UNIT_STAYS;
  uint64_t most = 0;
  for (uint32_t i = 0; i < n; i++) {
    uint64_t value = has_room(p, unit, places[i]) ? value_of(p, unit, places[i]) : 0;
    if (value > most) most = value, best = places[i];
  }
  return best;
}

/* A packed unit with room, or MU_UNIT_STAYS. */
static uint32_t find_room(struct plan *p, uint32_t unit) {
  uint32_t places[PLACES], chunks = mu_room_index_chunks(&p->room);
  uint32_t n =
      mu_room_index_find(&p->room, unit_bits(p->s, unit), random_below(p, chunks), p->s->probes, places, p->places);
  return best_place(p, unit, places, n);
}

static uint64_t join_stretch(struct plan *p, uint32_t unit, uint32_t packed) {
  const struct mu_mesh_search *s = p->s;
  uint64_t saved = 0;
  for (int step = -1; step <= 1; step += 2) {
    uint32_t n = along(p, unit, packed, step);
    for (uint32_t i = step > 0 ? 0 : 1; i <= n; i++) {
      uint32_t u = unit + (uint32_t)step * i;
      if (s->choice[u] != MU_UNIT_STAYS) break;
      join(p, u, packed + (uint32_t)step * i);
      if (!is_empty(s, u)) saved += s->pages[u];
    }
  }
  return saved;
}

static bool seeks_room(const struct mu_mesh_search *s, uint32_t unit) {
  return s->choice[unit] == MU_UNIT_STAYS && s->role[unit / s->units_per_run] != MU_RUN_ANCHOR;
}

/* Returns the pages given back. */
static uint64_t join_all(struct plan *p) {
  const struct mu_mesh_search *s = p->s;
  uint64_t saved = 0;
  if (p->first == p->end) return 0;
  for (uint32_t i = 0; i < p->candidates; i++) {
    uint32_t unit = s->order[i];
    if (!seeks_room(s, unit)) continue;
    uint32_t packed = find_room(p, unit);
    if (packed != MU_UNIT_STAYS) saved += join_stretch(p, unit, packed);
  }
  return saved;
}

/* Anchors. */

static void found_anchor(const struct mu_mesh_search *s, uint32_t run, uint32_t base) {
  uint32_t unit = run * s->units_per_run;
  s->role[run] = MU_RUN_ANCHOR;
  memcpy(packed_bits(s, base), unit_bits(s, unit), (size_t)s->units_per_run * s->words * sizeof *s->packed);
  for (uint32_t u = 0; u < s->units_per_run; u++) s->packed_live[base + u] = unit_live(s, unit + u);
}

static uint32_t base_of(const struct mu_mesh_search *s, uint32_t anchor) {
  return s->targets + anchor * s->units_per_run;
}

static void look_in(struct plan *p, uint32_t first, uint32_t end) {
  p->first = first;
  p->end = end;
  mu_room_index_build(&p->room, p->s->packed, p->s->packed_live, first, end);
}

static void found_anchors(struct plan *p, const struct choice_of_anchors *c) {
  const struct mu_mesh_search *s = p->s;
  for (uint32_t i = 0; i < c->count; i++) found_anchor(s, sampled_run(p, c->skip + i), base_of(s, i));
  p->random = s->seed;
  look_in(p, s->targets - scale(s->targets, p->sample, s->runs), base_of(s, c->count));
}

static uint32_t anchor_joined(const struct mu_mesh_search *s, uint32_t unit) {
  return (s->choice[unit] - s->targets) / s->units_per_run;
}

static bool joined_anchor(const struct mu_mesh_search *s, uint32_t unit) {
  return s->choice[unit] != MU_UNIT_STAYS && s->choice[unit] >= s->targets;
}

/* work[a] becomes the pages given back by units that join anchor a. */
static void count_gains(const struct plan *p, uint32_t anchors) {
  const struct mu_mesh_search *s = p->s;
  memset(s->work, 0, anchors * sizeof *s->work);
  for (uint32_t i = 0; i < p->candidates; i++)
    if (joined_anchor(s, s->order[i])) s->work[anchor_joined(s, s->order[i])] += s->pages[s->order[i]];
}

/* Trying out a number of anchors on the sample. */

static void undo(struct plan *p, const struct choice_of_anchors *c) {
  const struct mu_mesh_search *s = p->s;
  for (uint32_t i = 0; i < p->sample; i++)
    for (uint32_t u = sampled_run(p, i) * s->units_per_run, end = u + s->units_per_run; u < end; u++)
      if (s->choice[u] != MU_UNIT_STAYS) leave(p, u);
  for (uint32_t i = 0; i < c->count; i++) s->role[sampled_run(p, c->skip + i)] = MU_RUN_STAYS;
}

static void try_out(struct plan *p, uint32_t skip, uint32_t count, struct choice_of_anchors *best) {
  struct choice_of_anchors c = {.skip = skip, .count = count};
  if (skip + count > p->sample) return;
  found_anchors(p, &c);
  c.saved = join_all(p);
  undo(p, &c);
  if (c.saved > best->saved) *best = c;
}

static void try_coarsely(struct plan *p, uint32_t skip, uint32_t step, struct choice_of_anchors *best) {
  for (uint32_t count = 0; skip + count < p->sample; count += step) try_out(p, skip, count, best);
}

static void refine(struct plan *p, uint32_t step, struct choice_of_anchors *best) {
  while (step > 1) {
    struct choice_of_anchors middle = *best;
    step = (step + 1) / 2;
    if (middle.count > step) try_out(p, middle.skip, middle.count - step, best);
    try_out(p, middle.skip, middle.count + step, best);
  }
}

/* Nearly full runs rank first, but nobody fits into them, and probing them is in vain. */
static uint32_t count_useless(struct plan *p, const struct choice_of_anchors *c) {
  uint32_t useless = 0;
  found_anchors(p, c);
  join_all(p);
  count_gains(p, c->count);
  while (useless < c->count && (uint64_t)p->s->work[useless] * USELESS_SHARE * c->count < c->saved) useless++;
  undo(p, c);
  return useless;
}

static struct choice_of_anchors choose_roughly(struct plan *p) {
  uint32_t step = (p->sample + COARSE_STEPS - 1) / COARSE_STEPS;
  struct choice_of_anchors best = {0}, beyond_useless = {0};
  try_coarsely(p, 0, step, &best);
  refine(p, step, &best);
  uint32_t useless = count_useless(p, &best);
  if (!useless) return best;
  try_coarsely(p, useless, step, &beyond_useless);
  refine(p, step, &beyond_useless);
  return beyond_useless.saved > best.saved ? beyond_useless : best;
}

static void scale_choice(struct choice_of_anchors *c, uint32_t to, uint32_t from) {
  uint32_t end = scale(c->skip + c->count, to, from);
  c->skip = scale(c->skip, to, from);
  c->count = end - c->skip;
}

/* A choice made with a smaller sample. */
static void grow_sample(struct plan *p, uint32_t from, uint32_t to, struct choice_of_anchors *c) {
  take_sample(p, to);
  scale_choice(c, to, from);
  c->saved = 0;
  try_out(p, c->skip, c->count, c);
}

/* The more units there are to choose of, the better they join, so the fewer anchors are needed. */
static void try_fewer(struct plan *p, struct choice_of_anchors *best) {
  for (uint32_t count = best->count; count > FEWER && best->count == count;) {
    count -= FEWER;
    try_out(p, best->skip, count, best);
  }
}

static struct choice_of_anchors choose_anchors(struct plan *p) {
  uint32_t runs = p->s->runs, rough = smaller(runs, ROUGH_SAMPLE), fine = smaller(runs, FINE_SAMPLE);
  uint32_t last = smaller(runs, LAST_SAMPLE);
  take_sample(p, rough);
  struct choice_of_anchors c = choose_roughly(p);
  if (fine > rough) {
    grow_sample(p, rough, fine, &c);
    refine(p, fine / rough, &c);
  }
  if (last > fine) {
    grow_sample(p, fine, last, &c);
    try_fewer(p, &c);
  }
  scale_choice(&c, runs, last);
  return c;
}

/* Dropping anchors that are not worth it, the worst half of them at a time, so that their joiners help the others. */

static uint32_t count_gaining_at_most(const struct mu_mesh_search *s, uint32_t anchors, uint32_t gain) {
  uint32_t n = 0;
  for (uint32_t a = 0; a < anchors; a++) n += s->work[a] <= gain;
  return n;
}

/* The smallest gain that at least half of the anchors gaining less than `wanted` do not exceed. */
static uint32_t median_below(const struct mu_mesh_search *s, uint32_t anchors, uint32_t wanted) {
  uint32_t half = (count_gaining_at_most(s, anchors, wanted - 1) + 1) / 2, low = 0, high = wanted - 1;
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    if (count_gaining_at_most(s, anchors, middle) >= half)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

static void move_anchor(struct plan *p, uint32_t from, uint32_t to) {
  const struct mu_mesh_search *s = p->s;
  if (from == to) return;
  memcpy(packed_bits(s, base_of(s, to)), packed_bits(s, base_of(s, from)),
         (size_t)s->units_per_run * s->words * sizeof *s->packed);
  memcpy(s->packed_live + base_of(s, to), s->packed_live + base_of(s, from), s->units_per_run * sizeof *s->packed_live);
  p->ranked[to] = p->ranked[from];
}

/* work[a] becomes the new number of anchor a, or MU_UNIT_STAYS. Returns how many are kept. */
static uint32_t renumber_anchors(struct plan *p, uint32_t anchors, uint32_t gain) {
  uint32_t kept = 0;
  for (uint32_t a = 0; a < anchors; a++) {
    if (p->s->work[a] > gain) {
      move_anchor(p, a, kept);
      p->s->work[a] = kept++;
    } else {
      p->s->role[p->ranked[a]] = MU_RUN_STAYS;
      p->s->work[a] = MU_UNIT_STAYS;
    }
  }
  return kept;
}

static void renumber_choices(const struct plan *p) {
  const struct mu_mesh_search *s = p->s;
  for (uint32_t unit = 0; unit < s->runs * s->units_per_run; unit++) {
    if (!joined_anchor(s, unit)) continue;
    uint32_t anchor = s->work[anchor_joined(s, unit)], u = (s->choice[unit] - s->targets) % s->units_per_run;
    s->choice[unit] = anchor == MU_UNIT_STAYS ? MU_UNIT_STAYS : base_of(s, anchor) + u;
  }
}

/* Returns how many anchors are kept. */
static uint32_t drop_poor_anchors(struct plan *p, uint32_t anchors) {
  const struct mu_mesh_search *s = p->s;
  uint32_t wanted = at_least_one(s->min_pages_per_anchor);
  while (anchors) {
    count_gains(p, anchors);
    if (!count_gaining_at_most(s, anchors, wanted - 1)) break;
    anchors = renumber_anchors(p, anchors, median_below(s, anchors, wanted));
    renumber_choices(p);
    look_in(p, p->first, base_of(s, anchors));
    join_all(p);
  }
  return anchors;
}

/* The answer. */

static void number_anchors(const struct plan *p, uint32_t anchors) {
  const struct mu_mesh_search *s = p->s;
  memcpy(s->work, p->ranked, anchors * sizeof *s->work); /* ranked[] is anchor_base[] */
  memset(s->anchor_base, 0, s->runs * sizeof *s->anchor_base);
  for (uint32_t a = 0; a < anchors; a++) s->anchor_base[s->work[a]] = base_of(s, a);
  p->s->founded = anchors * s->units_per_run;
}

static void evacuate_joined(struct plan *p) {
  struct mu_mesh_search *s = p->s;
  s->pages_saved = 0;
  for (uint32_t i = 0; i < p->candidates; i++) {
    uint32_t unit = s->order[i];
    if (s->choice[unit] == MU_UNIT_STAYS) continue;
    s->role[unit / s->units_per_run] = MU_RUN_EVACUATED;
    s->pages_saved += s->pages[unit];
  }
}

static void make_plan(struct plan *p) {
  struct mu_mesh_search *s = p->s;
  rank_runs(p);
  struct choice_of_anchors c = choose_anchors(p);
  take_sample(p, s->runs);
  p->places = PLACES;
  found_anchors(p, &c);
  memmove(p->ranked, p->ranked + c.skip, c.count * sizeof *p->ranked);
  join_all(p);
  number_anchors(p, drop_poor_anchors(p, c.count));
  evacuate_joined(p);
}

void mu_mesh_search(struct mu_mesh_search *s) {
  struct plan p = {
      .s = s, .places = TRIAL_PLACES, .ranked = s->anchor_base, .room = {.rows = s->rows, .words = s->words}};
  s->founded = 0;
  s->pages_saved = 0;
  if (!s->runs || !s->units_per_run) return;
  memset(s->choice, 0xff, (size_t)s->runs * s->units_per_run * sizeof *s->choice);
  memset(s->role, MU_RUN_STAYS, s->runs);
  make_plan(&p);
}
