/* SPDX-License-Identifier: Apache-2.0 */
/* Large small objects, 1.5 to 32 KiB, whose spans are several pages: where one of many is left, the pages that hold
 * nothing of any go back by themselves, while the program sleeps; and while threads allocate and free as fast as they
 * can, nothing that is in use goes, and what calloc hands out is zeros. */
#include "test.h"

#include <pthread.h>

enum { KEEP = 16, BYTES = 12 << 20, THREADS = 3, HELD = 400, MOST_WAIT_MS = 20000 };
static const size_t sizes[] = {1536, 3072, 4096, 5120, 8192, 14000, 32768};
enum { SIZES = sizeof sizes / sizeof *sizes, MOST = BYTES / 1536 };

static uint64_t test_seed;
static struct {
  void *p;
  uint64_t seed;
} object[SIZES][MOST];

static size_t pss(void) {
  char line[256];
  size_t kb = 0;
  FILE *f = fopen("/proc/self/smaps_rollup", "re");
  CHECK(f);
  while (fgets(line, sizeof line, f))
    if (sscanf(line, "Pss: %zu", &kb) == 1) break;
  fclose(f);
  return kb << 10;
}

static size_t count_of(size_t i) {
  return BYTES / sizes[i];
}

static void fill(struct rng *rng) {
  for (size_t i = 0; i < SIZES; i++)
    for (size_t n = 0; n < count_of(i); n++) {
      CHECK(object[i][n].p = malloc(sizes[i]));
      object[i][n].seed = rng_next(rng);
      pattern_fill(object[i][n].p, sizes[i], object[i][n].seed);
    }
}

/* Returns the bytes that are left. */
static size_t thin_out(struct rng *rng) {
  size_t left = 0;
  for (size_t i = 0; i < SIZES; i++)
    for (size_t n = 0; n < count_of(i); n++)
      if (rng_below(rng, KEEP)) {
        free(object[i][n].p);
        object[i][n].p = NULL;
      } else {
        left += sizes[i];
      }
  return left;
}

static void verify(void) {
  for (size_t i = 0; i < SIZES; i++)
    for (size_t n = 0; n < count_of(i); n++)
      if (object[i][n].p) CHECK_PATTERN(object[i][n].p, sizes[i], object[i][n].seed);
}

/* What was dropped is handed out again, by calloc too. */
static void fill_again(struct rng *rng) {
  for (size_t i = 0; i < SIZES; i++)
    for (size_t n = 0; n < count_of(i); n++) {
      if (object[i][n].p) continue;
      CHECK(object[i][n].p = calloc(1, sizes[i]));
      const unsigned char *at = object[i][n].p;
      for (size_t k = 0; k < sizes[i]; k++) CHECKF(!at[k], "byte %zu of %zu is %d", k, sizes[i], at[k]);
      object[i][n].seed = rng_next(rng);
      pattern_fill(object[i][n].p, sizes[i], object[i][n].seed);
    }
  verify();
}

static void idle_pages_go(void) {
  struct rng rng = rng_from(test_seed, 0);
  memset(object, 0, sizeof object); /* no page of it comes later */
  size_t before = pss();
  fill(&rng);
  size_t full = pss() - before, left = thin_out(&rng), now = full;
  /* An object of 5 KiB takes up to three pages, and there are unused pages around those of 1.5 and 3 KiB. */
  for (int ms = 0; ms < MOST_WAIT_MS && now > left * 2 + full / 20; ms += 100) {
    sleep_ns(100000000);
    size_t is = pss();
    now = is > before ? is - before : 0;
  }
  CHECKF(now <= left * 2 + full / 20, "%zu of %zu KiB are in use, %zu still there", left >> 10, full >> 10, now >> 10);
  verify();
  printf("ok %zu of %zu KiB in use, %zu there\n", left >> 10, full >> 10, now >> 10);
  fill_again(&rng);
  for (size_t i = 0; i < SIZES; i++)
    for (size_t n = 0; n < count_of(i); n++) free(object[i][n].p);
}

static void *churn(void *argument) {
  struct rng rng = rng_from(test_seed, 1 + (uintptr_t)argument);
  static __thread struct {
    unsigned char *p;
    size_t size;
    uint64_t seed;
  } held[HELD];
  uint64_t end = now_ns() + (test_is_long() ? 30ULL : 2ULL) * 1000000000;
  for (uint64_t step = 0; step % 64 || now_ns() < end; step++) {
    size_t i = rng_below(&rng, HELD);
    if (step % 4096 == 0) sleep_ns(rng_below(&rng, 20000000)); /* young pages would stay */
    if (held[i].p) {
      CHECK_PATTERN(held[i].p, held[i].size, held[i].seed);
      free(held[i].p);
      held[i].p = NULL;
      if (rng_below(&rng, 3)) continue;
    }
    held[i].size = sizes[rng_below(&rng, SIZES)];
    held[i].seed = rng_next(&rng);
    bool zeroed = rng_below(&rng, 2);
    CHECK(held[i].p = zeroed ? calloc(1, held[i].size) : malloc(held[i].size));
    for (size_t k = 0; zeroed && k < held[i].size; k++) CHECKF(!held[i].p[k], "byte %zu of %zu", k, held[i].size);
    pattern_fill(held[i].p, held[i].size, held[i].seed);
  }
  for (size_t i = 0; i < HELD; i++)
    if (held[i].p) CHECK_PATTERN(held[i].p, held[i].size, held[i].seed);
  return NULL;
}

static void what_is_in_use_stays(void) {
  pthread_t thread[THREADS];
  for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&thread[i], NULL, churn, (void *)i) == 0);
  for (int i = 0; i < THREADS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
  printf("ok nothing was lost\n");
}

int main(int argc, char **argv) {
  test_seed = test_begin();
  test_watchdog(180);
  struct mesh_api api = mesh_api_find();
  test_needs_library(&api);
  if (argc == 1 && !getenv("MESH_UFFD_TEST_EAGER")) {
    idle_pages_go();
    setenv("MESH_UFFD_TEST_EAGER", "1", 1); /* from here on at every tick */
    setenv("MESH_UFFD_TEST_VALIDATE", "1", 1);
    execl("/proc/self/exe", argv[0], "churn", (char *)NULL);
    FAIL("exec: %s", strerror(errno));
  }
  what_is_in_use_stays();
  printf("passed\n");
  return 0;
}
