/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast the mesh search is and how near the floor it ends, with random live slots, from a thousand pages to ten
 * million (or to the number given as first argument); how near the optimum on instances small enough to try everything;
 * and what a heap of 10 GiB (or of as many pages) saves where mappings are short. Compared with meshing in pairs as
 * Mesh's SplitMesher does, one mapping a page.
 * Build: cc -std=gnu17 -O2 -I. bench/search_bench.c src/mesh_search.c src/room_index.c -o search_bench
 */
#include "src/mesh_search.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUN_PAGES = 64, PROBES = 4096, PAIR_PROBES = 64, SEED = 42 };

struct heap {
  uint32_t units, slots, nonempty;
  uint64_t live_slots;
  uint64_t *live;
};

struct result {
  double seconds;
  uint64_t left, mappings;
};

static uint64_t random_state;

static uint64_t next_random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static void *allocate(size_t n, size_t size) {
  void *memory = calloc(n ? n : 1, size);
  if (!memory) {
    perror("calloc");
    exit(1);
  }
  memset(memory, 0, n * size);
  return memory;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t random_bits(uint32_t slots, double occupancy) {
  uint64_t bits = 0;
  for (uint32_t i = 0; i < slots; i++)
    if ((double)(next_random() >> 11) * 0x1p-53 < occupancy) bits |= UINT64_C(1) << i;
  return bits;
}

static struct heap make_heap(uint32_t units, uint32_t slots, double occupancy) {
  struct heap h = {.units = units, .slots = slots, .live = allocate(units, sizeof *h.live)};
  random_state = SEED;
  for (uint32_t i = 0; i < units; i++) {
    h.live[i] = random_bits(slots, occupancy);
    h.nonempty += h.live[i] != 0;
    h.live_slots += (uint64_t)__builtin_popcountll(h.live[i]);
  }
  return h;
}

static void *allocate_units(const struct heap *h, size_t size) {
  return allocate(h->units, size);
}

/* Units of `unit_pages` pages, each of them one word of bitmap. */
static struct mu_mesh_search make_search(const struct heap *h, uint32_t unit_pages) {
  uint32_t units = h->units / unit_pages, per_run = RUN_PAGES / unit_pages;
  struct mu_mesh_search s = {.runs = units / per_run,
                             .units_per_run = per_run,
                             .words = unit_pages,
                             .unit_pages = unit_pages,
                             .live = h->live,
                             .probes = PROBES,
                             .seed = SEED,
                             .min_pages_per_anchor = 1,
                             .min_pages_per_join = 1};
  uint32_t *pages = allocate_units(h, sizeof *pages);
  uint64_t *empty = allocate_units(h, sizeof *empty);
  for (uint32_t i = 0; i < h->units; i++) pages[i / unit_pages] += h->live[i] != 0;
  for (uint32_t i = 0; i < units; i++)
    if (!pages[i]) empty[i / per_run] |= UINT64_C(1) << i % per_run;
  s.pages = pages;
  s.empty = empty;
  s.packed = allocate_units(h, sizeof *s.packed);
  s.packed_live = allocate_units(h, sizeof *s.packed_live);
  s.choice = allocate_units(h, sizeof *s.choice);
  s.role = allocate_units(h, sizeof *s.role);
  s.anchor_base = allocate_units(h, sizeof *s.anchor_base);
  s.order = allocate_units(h, sizeof *s.order);
  s.work = allocate_units(h, sizeof *s.work);
  s.rows = allocate(mu_room_index_words(units, unit_pages), sizeof *s.rows);
  return s;
}

static void free_search(struct mu_mesh_search *s) {
  free((void *)(uintptr_t)s->pages);
  free((void *)(uintptr_t)s->empty);
  free(s->packed);
  free(s->packed_live);
  free(s->choice);
  free(s->role);
  free(s->anchor_base);
  free(s->order);
  free(s->work);
  free(s->rows);
}

/* Pages that hold something: of packed units, and of units that stay. */
static uint64_t pages_left(const struct heap *h, const struct mu_mesh_search *s) {
  uint64_t left = 0;
  for (size_t i = 0; i < (size_t)s->founded * s->words; i++) left += s->packed[i] != 0;
  for (uint32_t i = 0; i < h->units; i++) {
    uint32_t unit = i / s->unit_pages;
    left += h->live[i] && s->role[unit / s->units_per_run] != MU_RUN_ANCHOR && s->choice[unit] == MU_UNIT_STAYS;
  }
  return left;
}

/* One for each stretch of units that go to neighbouring places, or stay. */
static uint64_t mappings_of(const struct mu_mesh_search *s) {
  uint64_t n = 0;
  for (uint32_t unit = 0; unit < s->runs * s->units_per_run; unit++) {
    uint32_t at = s->choice[unit], before = unit ? s->choice[unit - 1] : MU_UNIT_STAYS;
    bool goes_on = before == MU_UNIT_STAYS ? at == MU_UNIT_STAYS : at == before + 1;
    n += unit % s->units_per_run == 0 || !goes_on;
  }
  return n;
}

static struct result measure_search(const struct heap *h, uint32_t unit_pages) {
  struct mu_mesh_search s = make_search(h, unit_pages);
  double start = now();
  mu_mesh_search(&s);
  struct result r = {now() - start, pages_left(h, &s), mappings_of(&s)};
  free_search(&s);
  return r;
}

static uint32_t shuffle_nonempty(const struct heap *h, uint64_t *to) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < h->units; i++)
    if (h->live[i]) to[n++] = h->live[i];
  for (uint32_t i = n; i > 1; i--) {
    uint32_t j = (uint32_t)(next_random() % i);
    uint64_t bits = to[i - 1];
    to[i - 1] = to[j];
    to[j] = bits;
  }
  return n;
}

/* The left half meets the right half, shifted by one each round. A unit that has found its partner is all ones. */
static uint32_t mesh_pairs(uint64_t *bits, uint32_t n) {
  uint32_t left = n / 2, right = n - left, pairs = 0;
  for (uint32_t round = 0; round < PAIR_PROBES && right; round++)
    for (uint32_t i = 0; i < left; i++) {
      uint64_t *a = &bits[i], *b = &bits[left + (i + round) % right];
      if (*a & *b) continue;
      *a = *b = UINT64_MAX;
      pairs++;
    }
  return pairs;
}

static struct result measure_pairs(const struct heap *h) {
  uint64_t *bits = allocate_units(h, sizeof *bits);
  double start = now();
  uint32_t n = shuffle_nonempty(h, bits);
  struct result r = {.left = n - mesh_pairs(bits, n)};
  r.seconds = now() - start;
  free(bits);
  return r;
}

static void print_row(uint32_t units, uint32_t slots, double occupancy) {
  struct heap h = make_heap(units, slots, occupancy);
  struct result search = measure_search(&h, 1), pairs = measure_pairs(&h);
  uint64_t floor = (h.live_slots + slots - 1) / slots;
  printf("%9" PRIu32 " %9" PRIu32 " %8" PRIu64 " | %8" PRIu64 " %+6.1f%% %8" PRIu64 " %9.2f %7.0f | %8" PRIu64
         " %8" PRIu64 " %9.2f %7.0f\n",
         units, h.nonempty, floor, search.left, 100.0 * ((double)search.left / (double)floor - 1), search.mappings,
         search.seconds * 1e3, search.seconds * 1e9 / units, pairs.left, h.nonempty - pairs.left, pairs.seconds * 1e3,
         pairs.seconds * 1e9 / units);
  free(h.live);
}

static void print_table(uint32_t slots, double occupancy, uint32_t max_pages) {
  static const uint32_t pages[] = {1024, 4096, 10048, 43712, 100032, 1000000, 10000000};
  printf("%" PRIu32 " slots a page, %.1f %% live; %d probes, pairs %d\n", slots, occupancy * 100, PROBES, PAIR_PROBES);
  printf("%9s %9s %8s | %8s %7s %8s %9s %7s | %8s %8s %9s %7s\n", "pages", "nonempty", "floor", "left", "floor+",
         "mappings", "ms", "ns/page", "pairs", "mappings", "ms", "ns/page");
  for (size_t i = 0; i < sizeof pages / sizeof *pages && pages[i] <= max_pages; i++)
    print_row(pages[i], slots, occupancy);
}

/* Small instances: every set of anchors, every assignment. */

enum { TINY = 9, INSTANCES = 300, TINY_SLOTS = 6 };

static uint32_t best_from(const uint64_t *live, uint64_t *packed, uint32_t anchors, uint32_t unit) {
  if (unit == TINY) return 0;
  uint32_t best = best_from(live, packed, anchors, unit + 1);
  if (!live[unit] || (anchors >> unit & 1)) return best;
  for (uint32_t i = 0; i < TINY; i++) {
    if (!(anchors >> i & 1) || !packed[i] || (packed[i] & live[unit])) continue;
    packed[i] |= live[unit];
    uint32_t saved = 1 + best_from(live, packed, anchors, unit + 1);
    packed[i] &= ~live[unit];
    if (saved > best) best = saved;
  }
  return best;
}

static uint32_t optimum(const uint64_t *live) {
  uint32_t best = 0;
  for (uint32_t anchors = 0; anchors < 1U << TINY; anchors++) {
    uint64_t packed[TINY];
    memcpy(packed, live, sizeof packed);
    uint32_t saved = best_from(live, packed, anchors, 0);
    if (saved > best) best = saved;
  }
  return best;
}

static void compare_with_optimum(void) {
  uint64_t possible = 0, saved = 0, by_pairs = 0;
  for (uint32_t i = 0; i < INSTANCES; i++) {
    uint64_t live[TINY], pairs[TINY], packed[TINY] = {0}, rows[65 * MU_ROOM_CHUNK / 64], empty[TINY] = {0};
    uint32_t pages[TINY], packed_live[TINY] = {0}, choice[TINY], base[TINY], order[TINY], work[TINY];
    uint8_t role[TINY];
    random_state = (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    struct heap h = {.units = TINY, .live = live};
    for (uint32_t u = 0; u < TINY; u++) live[u] = random_bits(TINY_SLOTS, 0.15 + i % 30 * 0.01), pages[u] = 1;
    struct mu_mesh_search s = {.runs = TINY,
                               .units_per_run = 1,
                               .words = 1,
                               .unit_pages = 1,
                               .live = live,
                               .pages = pages,
                               .empty = empty,
                               .probes = PROBES,
                               .seed = SEED,
                               .packed = packed,
                               .packed_live = packed_live,
                               .choice = choice,
                               .role = role,
                               .anchor_base = base,
                               .order = order,
                               .work = work,
                               .rows = rows};
    mu_mesh_search(&s);
    saved += s.pages_saved;
    possible += optimum(live);
    by_pairs += mesh_pairs(pairs, shuffle_nonempty(&h, pairs));
  }
  printf("%d instances of %d pages: the optimum saves %" PRIu64 " pages, the search %" PRIu64
         " (%.1f %%), pairs %" PRIu64 " (%.1f %%)\n",
         INSTANCES, TINY, possible, saved, 100.0 * (double)saved / (double)possible, by_pairs,
         100.0 * (double)by_pairs / (double)possible);
}

/* Short of mappings: the default limit; the library takes up to 80 %, and Mesh stops at a third. */

enum { MAX_MAP_COUNT = 65530, BUDGET = MAX_MAP_COUNT / 10 * 8, THIRD = MAX_MAP_COUNT / 3, TEN_GIB = 2621440 };

static void print_budget(uint32_t pages) {
  struct heap h = make_heap(pages, 8, 0.05);
  uint64_t saved_by_pairs = h.nonempty - measure_pairs(&h).left;
  if (saved_by_pairs > THIRD) saved_by_pairs = THIRD;
  printf("%" PRIu32 " pages of 8 slots, 5 %% live, %" PRIu32 " not empty; in pairs, with %d mappings: %" PRIu64
         " pages saved\n",
         pages, h.nonempty, THIRD, saved_by_pairs);
  for (uint32_t unit = 1; unit <= 16; unit *= 2) {
    struct result r = measure_search(&h, unit);
    double share = r.mappings > BUDGET ? (double)BUDGET / (double)r.mappings : 1;
    double saved = (double)(h.nonempty - r.left) * share;
    printf("units of %2" PRIu32 ": all saves %8" PRIu64 " with %7" PRIu64
           " mappings; %d of them save %8.0f, %.1f times\n",
           unit, h.nonempty - r.left, r.mappings, BUDGET, saved, saved / (double)saved_by_pairs);
  }
  free(h.live);
}

int main(int argc, char **argv) {
  uint32_t max_pages = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : UINT32_MAX;
  print_table(16, 0.183, max_pages);
  print_table(8, 0.05, max_pages);
  compare_with_optimum();
  print_budget(max_pages < TEN_GIB ? max_pages / RUN_PAGES * RUN_PAGES : TEN_GIB);
  return 0;
}
