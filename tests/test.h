/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every test program shares: failing with a place, a seeded generator, patterns, time, and the public interface of
 * the library looked up at run time, so that the same binary runs under any malloc.
 *
 * Include it first. Nothing here allocates after test_begin(). Exit codes: 0 pass, 1 failure, 77 skipped.
 *
 * Environment: MESH_UFFD_TEST_SEED (number), MESH_UFFD_TEST_LONG=1 (minutes instead of seconds),
 * MESH_UFFD_TEST_GENERIC=1 (engine tests run under another malloc too, without their engine checks),
 * MESH_UFFD_TEST_SLOW=n (limits of time are n times as long), MESH_UFFD_EXPECT_TIER=n (engine tests fail when the tier
 * is another one).
 */
#ifndef MESH_UFFD_TEST_H
#define MESH_UFFD_TEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "../include/mesh-uffd.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TEST_SKIPPED = 77 };

#ifndef __GLIBC__ /* which alone has these */
static inline void *pvalloc(size_t size) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  return valloc(size > SIZE_MAX - page ? size : (size + page - 1) / page * page);
}
static inline int malloc_trim(size_t pad) {
  return (void)pad, 0;
}
#endif

/* ---- failing ---- */

__attribute__((noreturn, format(printf, 3, 4))) static inline void test_fail(const char *file, int line,
                                                                             const char *format, ...) {
  int error = errno;
  char text[1024];
  int used = snprintf(text, sizeof text, "FAIL %s:%d: ", file, line);
  va_list args;
  va_start(args, format);
  used += vsnprintf(text + used, sizeof text - (size_t)used, format, args);
  va_end(args);
  if (used > (int)sizeof text - 40) used = (int)sizeof text - 40;
  used += snprintf(text + used, sizeof text - (size_t)used, " (errno %d, pid %d)\n", error, (int)getpid());
  ssize_t written = write(STDERR_FILENO, text, (size_t)used);
  (void)written;
  _exit(1);
}

#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition)                                                                                               \
  do {                                                                                                                 \
    if (!(condition)) FAIL("%s", #condition);                                                                          \
  } while (0)
#define CHECKF(condition, ...)                                                                                         \
  do {                                                                                                                 \
    if (!(condition)) FAIL(#condition ": " __VA_ARGS__);                                                               \
  } while (0)

static inline void test_watchdog_handler(int signal_number) {
  (void)signal_number;
  static const char text[] = "FAIL: the watchdog ended a test that hangs\n";
  ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
  (void)written;
  _exit(1);
}

/* By how much a slow machine, as an emulated one, multiplies limits of time: MESH_UFFD_TEST_SLOW. */
static inline unsigned test_slow(void) {
  const char *text = getenv("MESH_UFFD_TEST_SLOW");
  unsigned slow = text ? (unsigned)strtoul(text, NULL, 10) : 1;
  return slow ? slow : 1;
}

/* Fails the process after so many seconds. Not inherited by fork: a child sets its own. */
static inline void test_watchdog(unsigned seconds) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = test_watchdog_handler;
  sigemptyset(&action.sa_mask);
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  alarm(seconds * test_slow());
}

/* ---- the optimiser ---- */

/* A value the compiler knows nothing about. */
static inline void *opaque(void *p) {
  __asm__ volatile("" : "+r"(p) : : "memory");
  return p;
}

static inline size_t opaque_size(size_t n) {
  __asm__ volatile("" : "+r"(n));
  return n;
}

/* ---- time ---- */

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline void sleep_ns(uint64_t ns) {
  struct timespec t;
  t.tv_sec = (time_t)(ns / 1000000000u);
  t.tv_nsec = (long)(ns % 1000000000u);
  nanosleep(&t, NULL);
}

/* ---- random numbers (splitmix64) ---- */

struct rng {
  uint64_t state;
};

static inline uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}

static inline uint64_t rng_next(struct rng *rng) {
  return mix64(rng->state += UINT64_C(0x9e3779b97f4a7c15));
}

/* 0 to n - 1; n > 0. */
static inline size_t rng_below(struct rng *rng, size_t n) {
  return (size_t)(rng_next(rng) % n);
}

static inline struct rng rng_from(uint64_t seed, uint64_t stream) {
  struct rng rng;
  rng.state = mix64(seed ^ mix64(stream + 1));
  return rng;
}

/* About as many of each magnitude, from 1 to 2^bits - 1. */
static inline size_t rng_size(struct rng *rng, unsigned bits) {
  size_t top = (size_t)1 << rng_below(rng, bits);
  return top + rng_below(rng, top);
}

static inline void shuffle_pointers(struct rng *rng, void **items, size_t n) {
  for (size_t i = n; i > 1; i--) {
    size_t j = rng_below(rng, i);
    void *t = items[i - 1];
    items[i - 1] = items[j];
    items[j] = t;
  }
}

/* ---- patterns: a prefix of a longer pattern is the shorter pattern ---- */

static inline uint64_t pattern_word(uint64_t seed, size_t index) {
  uint64_t w = (seed + index) * UINT64_C(0x9e3779b97f4a7c15);
  return w ^ (w >> 29);
}

static inline void pattern_fill(void *p, size_t n, uint64_t seed) {
  unsigned char *b = (unsigned char *)p;
  size_t words = n / 8;
  for (size_t i = 0; i < words; i++) {
    uint64_t w = pattern_word(seed, i);
    memcpy(b + i * 8, &w, 8);
  }
  if (n % 8) {
    uint64_t w = pattern_word(seed, words);
    memcpy(b + words * 8, &w, n % 8);
  }
}

/* n when all n bytes are right, else the offset of the first word that is not. */
static inline size_t pattern_check(const void *p, size_t n, uint64_t seed) {
  const unsigned char *b = (const unsigned char *)p;
  size_t words = n / 8;
  for (size_t i = 0; i < words; i++) {
    uint64_t w = pattern_word(seed, i);
    if (memcmp(b + i * 8, &w, 8) != 0) return i * 8;
  }
  if (n % 8) {
    uint64_t w = pattern_word(seed, words);
    if (memcmp(b + words * 8, &w, n % 8) != 0) return words * 8;
  }
  return n;
}

#define CHECK_PATTERN(p, n, seed)                                                                                      \
  do {                                                                                                                 \
    size_t good_ = pattern_check((p), (n), (seed));                                                                    \
    if (good_ != (n)) FAIL("%zu bytes at %p are wrong from offset %zu", (size_t)(n), (const void *)(p), good_);        \
  } while (0)

/* An allocation with a pattern in it; p: NULL when there is none. */
struct patterned {
  unsigned char *p;
  size_t size;
  uint64_t seed;
};

/* The allocation that o->p is now has o->size bytes of the pattern o->seed from here on. */
static inline void patterned_begin(struct patterned *o, size_t size, uint64_t seed) {
  o->size = size;
  o->seed = seed;
  pattern_fill(o->p, size, seed);
}

static inline void patterned_check(const struct patterned *o) {
  if (o->p) CHECK_PATTERN(o->p, o->size, o->seed);
}

static inline void patterned_discard(struct patterned *o) {
  patterned_check(o);
  free(o->p);
  o->p = NULL;
}

/* False when there is no memory: then it is as it was. */
static inline bool patterned_resize(struct patterned *o, size_t size) {
  unsigned char *p = (unsigned char *)realloc(o->p, size);
  if (!p) return false;
  CHECK_PATTERN(p, size < o->size ? size : o->size, o->seed);
  o->p = p;
  patterned_begin(o, size, o->seed);
  return true;
}

/* ---- the library ---- */

struct mesh_api {
  bool present;
  const char *(*version)(void);
  int (*get_stats)(struct mesh_uffd_stats *);
  size_t (*compact)(void);
  bool (*is_ours)(const void *);
  size_t (*usable_size)(const void *);
  int (*exempt)(const void *);
  int (*profile_write)(const char *);
  void (*pause)(void);
  void (*resume)(void);
};

/* How many of the functions there are: all, or the process is not running on the library. */
static inline int mesh_api_symbol(const char *name, void *function_pointer) {
  void *address = dlsym(RTLD_DEFAULT, name);
  memcpy(function_pointer, &address, sizeof address);
  return address != NULL;
}

static inline struct mesh_api mesh_api_find(void) {
  struct mesh_api api;
  memset(&api, 0, sizeof api);
  int found = mesh_api_symbol("mesh_uffd_version", &api.version);
  found += mesh_api_symbol("mesh_uffd_get_stats", &api.get_stats);
  found += mesh_api_symbol("mesh_uffd_compact", &api.compact);
  found += mesh_api_symbol("mesh_uffd_is_ours", &api.is_ours);
  found += mesh_api_symbol("mesh_uffd_usable_size", &api.usable_size);
  found += mesh_api_symbol("mesh_uffd_exempt", &api.exempt);
  found += mesh_api_symbol("mesh_uffd_profile_write", &api.profile_write);
  found += mesh_api_symbol("mesh_uffd_pause", &api.pause);
  found += mesh_api_symbol("mesh_uffd_resume", &api.resume);
  CHECKF(found == 0 || found == 9, "only %d of 9 public functions are there", found);
  api.present = found == 9;
  return api;
}

static inline size_t mesh_api_compact(const struct mesh_api *api) {
  return api->present ? api->compact() : 0;
}

static inline struct mesh_uffd_stats mesh_api_stats(const struct mesh_api *api) {
  struct mesh_uffd_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  if (api->present) CHECK(api->get_stats(&stats) == 0);
  return stats;
}

static inline const char *tier_name(uint32_t tier) {
  switch (tier) {
  case MESH_UFFD_TIER_UNKNOWN:
    return "unknown";
  case MESH_UFFD_TIER_FULL:
    return "full";
  case MESH_UFFD_TIER_FULL_WP:
    return "full-wp";
  case MESH_UFFD_TIER_USER:
    return "user";
  case MESH_UFFD_TIER_NONE:
    return "none";
  default:
    return "invalid";
  }
}

static inline bool tier_is_full(uint32_t tier) {
  return tier == MESH_UFFD_TIER_FULL || tier == MESH_UFFD_TIER_FULL_WP;
}

static inline void print_stats(const struct mesh_uffd_stats *s) {
  printf("stats: tier=%s meshes=%llu meshed_pages=%llu freed=%llu reclaimed=%llu passes=%llu pass_ms=%llu "
         "longest_pass_us=%llu faults=%llu longest_fault_us=%llu refused=%llu mappings=%llu live=%llu span=%llu "
         "ring=%llu vector=%llu plain=%llu packed=%llu\n",
         tier_name(s->tier), (unsigned long long)s->meshes, (unsigned long long)s->meshed_pages,
         (unsigned long long)s->freed_bytes, (unsigned long long)s->reclaimed_bytes, (unsigned long long)s->passes,
         (unsigned long long)(s->pass_ns / 1000000), (unsigned long long)(s->longest_pass_ns / 1000),
         (unsigned long long)s->faults, (unsigned long long)(s->longest_fault_ns / 1000),
         (unsigned long long)s->refused, (unsigned long long)s->mappings, (unsigned long long)s->live_bytes,
         (unsigned long long)s->span_bytes, (unsigned long long)s->ops_ring, (unsigned long long)s->ops_vector,
         (unsigned long long)s->ops_plain, (unsigned long long)s->packed_bytes);
}

/* ---- the environment ---- */

static inline bool env_flag(const char *name) {
  const char *value = getenv(name);
  return value && *value && strcmp(value, "0") != 0;
}

static inline bool test_is_long(void) {
  return env_flag("MESH_UFFD_TEST_LONG");
}

/* Prints the seed, which comes first in every test's output, and returns it. */
static inline uint64_t test_begin(void) {
  setvbuf(stdout, NULL, _IOLBF, 4096);
  const char *text = getenv("MESH_UFFD_TEST_SEED");
  uint64_t seed = text && *text ? strtoull(text, NULL, 0) : mix64(now_ns() ^ ((uint64_t)getpid() << 40));
  printf("seed: %#llx\n", (unsigned long long)seed);
  return seed;
}

/* For the tests of the engine: without the library there is nothing to test, unless asked for. */
static inline void test_needs_library(const struct mesh_api *api) {
  if (api->present) return;
  printf("tier: absent\n");
  if (env_flag("MESH_UFFD_TEST_GENERIC")) return;
  printf("skipped: not running on mesh-uffd\n");
  exit(TEST_SKIPPED);
}

static inline void test_expect_tier(uint32_t tier) {
  const char *text = getenv("MESH_UFFD_EXPECT_TIER");
  if (!text || !*text) return;
  unsigned long expected = strtoul(text, NULL, 0);
  CHECKF(expected == tier, "expected %lu (%s), got %u (%s)", expected, tier_name((uint32_t)expected), tier,
         tier_name(tier));
}

#endif
