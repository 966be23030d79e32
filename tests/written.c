/* SPDX-License-Identifier: Apache-2.0 */
/* Two sparse sizes, of which one is written to four times a second: what is written is left alone, and costs no more
 * than it did; the other is meshed. Nothing else is done meanwhile. */
#include "test.h"

#include <inttypes.h>

enum { OBJECTS = 60000, KEEP = 10, ROUND_MS = 250, LEAST_ROUNDS = 24, MOST_ROUNDS = 160, SIZES = 2 };
static const size_t sizes[SIZES] = {256, 384}; /* the first is written */

static struct object {
  unsigned char *p;
  uint64_t seed;
} object[SIZES][OBJECTS];

static void build(struct rng *rng) {
  for (size_t i = 0; i < OBJECTS; i++)
    for (int s = 0; s < SIZES; s++) {
      CHECK(object[s][i].p = malloc(sizes[s]));
      object[s][i].seed = rng_next(rng);
      pattern_fill(object[s][i].p, sizes[s], object[s][i].seed);
    }
  for (size_t i = 0; i < OBJECTS; i++)
    for (int s = 0; s < SIZES; s++)
      if (rng_below(rng, KEEP)) {
        free(object[s][i].p);
        object[s][i].p = NULL;
      }
}

static void write_all(void) {
  for (size_t i = 0; i < OBJECTS; i++)
    if (object[0][i].p) pattern_fill(object[0][i].p, sizes[0], ++object[0][i].seed);
}

/* Which share of a size's survivors lies in mappings of files. */
static double meshed(int s) {
  static struct { uintptr_t start, end; } map[70000];
  size_t n = 0, in = 0, all = 0;
  char line[512];
  FILE *f = fopen("/proc/self/maps", "re");
  CHECK(f);
  while (fgets(line, sizeof line, f) && n < 70000)
    if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &map[n].start, &map[n].end) == 2) n += strstr(line, "memfd") != NULL;
  fclose(f);
  for (size_t i = 0; i < OBJECTS; i++) {
    uintptr_t p = (uintptr_t)object[s][i].p;
    size_t low = 0, high = n;
    if (!p) continue;
    while (low < high) {
      size_t middle = (low + high) / 2;
      if (map[middle].end <= p)
        low = middle + 1;
      else
        high = middle;
    }
    in += low < n && map[low].start <= p;
    all++;
  }
  return (double)in / (double)all;
}

int main(void) {
  uint64_t seed = test_begin();
  struct rng rng = rng_from(seed, 0);
  test_watchdog(120);
  struct mesh_api api = mesh_api_find();
  test_needs_library(&api);
  build(&rng);
  double cold = 0;
  uint64_t written = now_ns(), longest = 0;
  for (int round = 0; round < LEAST_ROUNDS || (round < MOST_ROUNDS && cold < 0.5); round++) {
    write_all();
    longest = now_ns() - written > longest ? now_ns() - written : longest;
    written = now_ns();
    sleep_ns(ROUND_MS * 1000000ULL);
    struct mesh_uffd_stats s = mesh_api_stats(&api);
    if (round >= LEAST_ROUNDS / 2 && !tier_is_full(s.tier)) {
      printf("SKIP: tier %s has no barrier, so there is no meshing while the program is at it\n", tier_name(s.tier));
      return 77;
    }
    if (round % 4 == 3) cold = meshed(1);
  }
  double hot = meshed(0);
  if (hot > 0.1 && longest > 1000000000) {
    printf("SKIP: the machine is too busy: nothing was written for %.1f s\n", (double)longest / 1e9);
    return 77;
  }
  CHECKF(cold >= 0.5, "only %.0f %% of what is not written was meshed", cold * 100);
  CHECKF(hot <= 0.1, "%.0f %% of what is written was meshed", hot * 100);
  for (int s = 0; s < SIZES; s++)
    for (size_t i = 0; i < OBJECTS; i++)
      if (object[s][i].p) CHECK_PATTERN(object[s][i].p, sizes[s], object[s][i].seed);
  printf("ok %.0f %% of what is not written was meshed, %.0f %% of what is\npassed\n", cold * 100, hot * 100);
  return 0;
}
