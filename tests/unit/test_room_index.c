/* SPDX-License-Identifier: Apache-2.0 */
#include "src/rng.h"
#include "src/room_index.h"

#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdlib.h>

/* What the index finds is what a look at each bitmap finds, after any joins and leaves. */

enum { MOST = 3000, MOST_WORDS = 5, SEEDS = 40, STEPS = 60 };

static uint64_t packed[MOST * MOST_WORDS];
static uint32_t live[MOST], found[MOST];
static uint64_t random_state;

static uint32_t random_below(uint32_t bound) {
  return mu_rng_below(&random_state, bound);
}

/* One in `rare` slots. */
static uint32_t random_bits(uint64_t *bits, uint32_t words, uint32_t rare) {
  uint32_t n = 0;
  for (uint32_t w = 0; w < words; w++) bits[w] = 0;
  for (uint32_t i = 0; i < words * 64; i++)
    if (!random_below(rare)) bits[i / 64] |= UINT64_C(1) << i % 64, n++;
  return n;
}

static bool fits(uint32_t i, const uint64_t *bits, uint32_t words) {
  uint64_t both = 0;
  for (uint32_t w = 0; w < words; w++) both |= packed[(size_t)i * words + w] & bits[w];
  return live[i] && !both;
}

static void check_all(const struct mu_room_index *x, const uint64_t *bits) {
  static bool was_found[MOST];
  uint32_t n = mu_room_index_find(x, bits, random_below(mu_room_index_chunks(x)), MOST + MU_ROOM_CHUNK, found, MOST);
  for (uint32_t i = 0; i < MOST; i++) was_found[i] = false;
  for (uint32_t i = 0; i < n; i++) was_found[found[i]] = true;
  for (uint32_t i = x->first; i < x->end; i++)
    cr_assert_eq(was_found[i], fits(i, bits, x->words), "seed state %lx, packed unit %u", (unsigned long)random_state,
                 i);
}

static void join_or_leave(struct mu_room_index *x) {
  uint64_t bits[MOST_WORDS];
  uint32_t i = x->first + random_below(x->end - x->first);
  uint64_t *at = packed + (size_t)i * x->words;
  random_bits(bits, x->words, 20);
  if (random_below(2)) { /* what is there of these leaves */
    for (uint32_t w = 0; w < x->words; w++) bits[w] &= at[w];
    mu_room_index_release(x, i, bits);
  } else {
    for (uint32_t w = 0; w < x->words; w++) bits[w] &= ~at[w];
    mu_room_index_take(x, i, bits);
  }
  for (uint32_t w = 0; w < x->words; w++) at[w] ^= bits[w];
}

static void check_seed(uint64_t seed) {
  random_state = seed * 0x9E3779B97F4A7C15u + 1;
  uint32_t words = 1 + random_below(MOST_WORDS), first = random_below(700),
           end = first + 1 + random_below(MOST - first);
  struct mu_room_index x = {.rows = malloc(mu_room_index_words(end, words) * sizeof(uint64_t)), .words = words};
  cr_assert(x.rows);
  for (uint32_t i = 0; i < end; i++)
    live[i] = random_below(10) ? random_bits(packed + (size_t)i * words, words, 2 + random_below(30)) : 0;
  mu_room_index_build(&x, packed, live, first, end);
  for (int step = 0; step < STEPS; step++) {
    uint64_t bits[MOST_WORDS];
    random_bits(bits, words, 3 + random_below(40));
    check_all(&x, bits);
    join_or_leave(&x);
  }
  free(x.rows);
}

Test(room_index, finds_what_a_look_at_each_finds) {
  for (uint64_t seed = 0; seed < SEEDS; seed++) check_seed(seed);
}

Test(room_index, stops_when_it_has_enough) {
  uint64_t none = 0, rows_of[65 * MU_ROOM_CHUNK / 64 * 2];
  struct mu_room_index x = {.rows = rows_of, .words = 1};
  for (uint32_t i = 0; i < 600; i++) packed[i] = 1, live[i] = 1;
  mu_room_index_build(&x, packed, live, 0, 600);
  cr_assert_eq(mu_room_index_find(&x, &none, 0, MU_ROOM_CHUNK, found, 7), 7);
  cr_assert_eq(mu_room_index_find(&x, &none, 0, MU_ROOM_CHUNK, found, MOST), MU_ROOM_CHUNK, "no further than wanted");
  cr_assert_eq(mu_room_index_find(&x, &none, 1, MU_ROOM_CHUNK + 1, found, MOST), 600, "round about");
}
