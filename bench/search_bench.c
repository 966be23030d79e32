/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast the mesh search is and how near the floor it ends, with random live slots, from a thousand units to ten
 * million (or to the number given as first argument). Compared with meshing in pairs as Mesh's SplitMesher does.
 * Build: cc -std=gnu17 -O2 -I. bench/search_bench.c src/mesh_search.c src/room_index.c -o search_bench
 */
#include "src/mesh_search.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { UNITS_PER_RUN = 64, PROBES = 64, SEED = 42 };

struct heap {
  uint32_t units, slots, nonempty;
  uint64_t live_slots;
  uint64_t *live;
};

struct result {
  double seconds;
  uint64_t left;
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

static struct mu_mesh_search make_search(const struct heap *h) {
  struct mu_mesh_search s = {.runs = h->units / UNITS_PER_RUN,
                             .units_per_run = UNITS_PER_RUN,
                             .words = 1,
                             .unit_pages = 1,
                             .live = h->live,
                             .probes = PROBES,
                             .seed = SEED,
                             .min_pages_per_anchor = 1,
                             .min_pages_per_join = 1};
  uint32_t *pages = allocate_units(h, sizeof *pages);
  for (uint32_t i = 0; i < h->units; i++) pages[i] = 1;
  s.pages = pages;
  s.packed = allocate_units(h, sizeof *s.packed);
  s.packed_live = allocate_units(h, sizeof *s.packed_live);
  s.choice = allocate_units(h, sizeof *s.choice);
  s.role = allocate(s.runs, sizeof *s.role);
  s.anchor_base = allocate(s.runs, sizeof *s.anchor_base);
  s.order = allocate_units(h, sizeof *s.order);
  s.work = allocate_units(h, sizeof *s.work);
  s.rows = allocate(mu_room_index_words(h->units, 1), sizeof *s.rows);
  return s;
}

static void free_search(struct mu_mesh_search *s) {
  free((void *)(uintptr_t)s->pages);
  free(s->packed);
  free(s->packed_live);
  free(s->choice);
  free(s->role);
  free(s->anchor_base);
  free(s->order);
  free(s->work);
  free(s->rows);
}

static struct result measure_search(const struct heap *h) {
  struct mu_mesh_search s = make_search(h);
  double start = now();
  mu_mesh_search(&s);
  struct result r = {now() - start, h->nonempty - s.pages_saved};
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
  for (uint32_t round = 0; round < PROBES && right; round++)
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
  struct result r = {0, n - mesh_pairs(bits, n)};
  r.seconds = now() - start;
  free(bits);
  return r;
}

static void print_row(uint32_t units, uint32_t slots, double occupancy) {
  struct heap h = make_heap(units, slots, occupancy);
  struct result search = measure_search(&h), pairs = measure_pairs(&h);
  uint64_t floor = (h.live_slots + slots - 1) / slots;
  printf("%9" PRIu32 " %9" PRIu32 " %8" PRIu64 " | %8" PRIu64 " %+6.1f%% %10.2f %7.0f | %8" PRIu64 " %10.2f %7.0f\n",
         units, h.nonempty, floor, search.left, 100.0 * ((double)search.left / (double)floor - 1), search.seconds * 1e3,
         search.seconds * 1e9 / units, pairs.left, pairs.seconds * 1e3, pairs.seconds * 1e9 / units);
  free(h.live);
}

static void print_table(uint32_t slots, double occupancy, uint32_t max_units) {
  static const uint32_t units[] = {1024, 4096, 10048, 43712, 100032, 1000000, 10000000};
  printf("%" PRIu32 " slots a unit, %.1f %% live, %d probes\n", slots, occupancy * 100, PROBES);
  printf("%9s %9s %8s | %8s %7s %10s %7s | %8s %10s %7s\n", "units", "nonempty", "floor", "left", "floor+", "ms",
         "ns/unit", "pairs", "ms", "ns/unit");
  for (size_t i = 0; i < sizeof units / sizeof *units && units[i] <= max_units; i++)
    print_row(units[i], slots, occupancy);
}

int main(int argc, char **argv) {
  uint32_t max_units = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : UINT32_MAX;
  print_table(16, 0.183, max_units);
  print_table(8, 0.05, max_units);
  return 0;
}
