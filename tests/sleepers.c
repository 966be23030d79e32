/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that allocate, free most of it in between, and sleep for ever. What they keep for themselves must be bounded
 * however many they are, and what survives of theirs must be compacted: nobody wakes them for that. */
#include "test.h"

#include <malloc.h>
#include <pthread.h>

enum { SIZES = 20, EACH = 200, KEEP = 10 }; /* one of KEEP survives */
static const size_t MIB = 1 << 20;

static struct mesh_api api;
static uint64_t test_seed;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static size_t started, filled, asleep, survivors_bytes;
static bool together; /* nobody frees before all have allocated */
static size_t most;   /* threads */
static bool wake;

static size_t size_of(int i) {
  return (size_t)16 << i / 3 | (size_t)(i % 3) * ((size_t)4 << i / 3); /* 16 to 1536 */
}

struct survivor {
  void *p;
  uint64_t seed;
};

static void work(struct rng *rng, struct survivor *kept) {
  static __thread void *all[SIZES * EACH];
  size_t bytes = 0, n = 0;
  for (int i = 0; i < SIZES * EACH; i++) CHECK(all[i] = malloc(size_of(i % SIZES)));
  pthread_mutex_lock(&lock);
  filled++;
  pthread_cond_broadcast(&changed);
  while (together && filled < most) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
  size_t which = rng_below(rng, KEEP);
  for (int i = 0; i < SIZES * EACH; i++) {
    if ((size_t)(i / SIZES) % KEEP != which) {
      free(all[i]);
      continue;
    }
    kept[n] = (struct survivor){all[i], rng_next(rng)};
    pattern_fill(all[i], size_of(i % SIZES), kept[n].seed);
    bytes += malloc_usable_size(all[i]);
    n++;
  }
  pthread_mutex_lock(&lock);
  survivors_bytes += bytes;
}

static void *sleeper(void *argument) {
  struct rng rng = rng_from(test_seed, (uintptr_t)argument);
  static __thread struct survivor kept[SIZES * EACH / KEEP];
  work(&rng, kept);
  asleep++;
  pthread_cond_broadcast(&changed);
  while (!wake) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
  for (size_t i = 0; i < SIZES * EACH / KEEP; i++) {
    CHECK_PATTERN(kept[i].p, size_of((int)(i % SIZES)), kept[i].seed);
    free(kept[i].p);
  }
  return NULL;
}

/* Starts threads until `count` have been; waits for each, unless all are to allocate together: what is needed at once
 * would hide what each keeps. */
static void start_sleepers(pthread_t *threads, size_t count) {
  pthread_attr_t attributes;
  CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, MIB) == 0);
  for (; started < count; started++) {
    CHECK(pthread_create(&threads[started], &attributes, sleeper, (void *)(uintptr_t)started) == 0);
    pthread_mutex_lock(&lock);
    while (!together && asleep <= started) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
  }
  pthread_mutex_lock(&lock);
  while (asleep < count) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
  pthread_attr_destroy(&attributes);
}

static void wake_sleepers(pthread_t *threads) {
  pthread_mutex_lock(&lock);
  wake = true;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  for (size_t i = 0; i < started; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  started = filled = asleep = survivors_bytes = 0;
  wake = false;
}

/* Slots that are free, and kept by a thread for itself. */
static size_t kept_free(void) {
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  return s.live_bytes > survivors_bytes ? s.live_bytes - survivors_bytes : 0;
}

/* A thread may keep a few slots of each size, and all together some more, but not so much for each. */
static void hoards_are_bounded(pthread_t *threads) {
  most = test_is_long() ? 1000 : 160;
  start_sleepers(threads, most);
  size_t kept = kept_free(), may = 6 * MIB + most * SIZES * 1024 + survivors_bytes / 8;
  CHECKF(kept <= may, "%zu threads keep %zu KiB free, %zu KiB are allowed", most, kept >> 10, may >> 10);
  printf("ok %zu threads asleep, %zu KiB survive, %zu KiB kept free\n", most, survivors_bytes >> 10, kept >> 10);
  wake_sleepers(threads);
}

/* All memory is shared by all; most of it is free, but no page. */
static void survivors_are_compacted(pthread_t *threads) {
  most = test_is_long() ? 200 : 40;
  together = true;
  start_sleepers(threads, most);
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  size_t spans = (size_t)s.span_bytes, before = (size_t)s.freed_bytes;
  mesh_api_compact(&api);
  s = mesh_api_stats(&api);
  size_t freed = (size_t)s.freed_bytes - before;
  if (tier_is_full(s.tier))
    CHECKF(freed > spans / 3, "spans of %zu KiB hold %zu KiB, %zu KiB went", spans >> 10, survivors_bytes >> 10,
           freed >> 10);
  printf("ok spans of %zu KiB hold %zu KiB, %zu KiB went by meshing, tier %s\n", spans >> 10, survivors_bytes >> 10,
         freed >> 10, tier_name(s.tier));
  wake_sleepers(threads);
}

int main(void) {
  test_seed = test_begin();
  test_watchdog(120);
  api = mesh_api_find();
  test_needs_library(&api);
  static pthread_t threads[1000];
  hoards_are_bounded(threads);
  survivors_are_compacted(threads);
  printf("passed\n");
  return 0;
}
