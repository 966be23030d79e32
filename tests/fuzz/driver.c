/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Feeds a fuzz target where there is no libFuzzer: driver [INPUTS [THREADS]], random bytes from MESH_UFFD_TEST_SEED.
 * Options' inputs are made of its own words, since random bytes are no options.
 */
#include "../test.h"

#include <pthread.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MOST_BYTES = 6000 };
static uint64_t seed;
static size_t inputs;

static const char *const words[] = {"MESH_UFFD_", "MESH",  "TEST_FAIL",   "CPU_PERCENT", "MALLOCSTATS",
                                    "=",          "mmap",  ":",           "0",           "12",
                                    "-",          ",",     "99999999999", "\n",          "ioctl",
                                    "PAUSE_US",   "TEST_", "TIER",        "futex:1-:4",  "MESH_UFFD_TEST_FAIL="};

static size_t make(struct rng *rng, uint8_t *data) {
  size_t size = rng_below(rng, MOST_BYTES), n = 0;
  bool text = rng_below(rng, 2);
  while (n < size) {
    const char *word = words[rng_below(rng, sizeof words / sizeof *words)];
    size_t len = text && rng_below(rng, 20) ? strlen(word) : 0;
    if (n + len > size) break;
    memcpy(data + n, word, len);
    n += len;
    if (!len) data[n++] = (uint8_t)rng_next(rng);
  }
  return n;
}

static void *feed(void *index) {
  static _Thread_local uint8_t data[MOST_BYTES];
  struct rng rng = rng_from(seed, (uint64_t)(uintptr_t)index);
  for (size_t i = 0; i < inputs; i++) LLVMFuzzerTestOneInput(data, make(&rng, data));
  return NULL;
}

int main(int argc, char **argv) {
  enum { MOST_THREADS = 16 };
  pthread_t threads[MOST_THREADS];
  seed = test_begin();
  inputs = argc > 1 ? strtoul(argv[1], NULL, 10) : 2000;
  size_t n = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
  CHECK(n >= 1 && n <= MOST_THREADS);
  for (size_t i = 0; i < n; i++) CHECK(pthread_create(&threads[i], NULL, feed, (void *)(uintptr_t)i) == 0);
  for (size_t i = 0; i < n; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  printf("passed: %zu inputs by %zu threads\n", inputs, n);
  return 0;
}
