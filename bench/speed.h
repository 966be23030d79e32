/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs of bench/run share: random numbers, and objects that notice when they are overwritten. */
#ifndef BENCH_SPEED_H
#define BENCH_SPEED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALLEST = 16, TOUCH_STEP = 4096 };

#define TAG UINT64_C(0x9e3779b97f4a7c15)

struct rng {
  uint64_t state;
};

static inline uint64_t rng_next(struct rng *r) {
  r->state ^= r->state << 13;
  r->state ^= r->state >> 7;
  r->state ^= r->state << 17;
  return r->state;
}

/* From 0 to n - 1; n is less than 2^32. */
static inline size_t rng_below(struct rng *r, size_t n) {
  return (size_t)(((rng_next(r) >> 32) * n) >> 32);
}

/* Sizes of an object: from low to high, as many between 2^n and 2^(n+1) for each n (or all alike: uniform). */
struct sizes {
  size_t low, high;
  bool uniform;
};

static inline size_t sizes_pick(const struct sizes *s, struct rng *r) {
  if (s->low == s->high) return s->low;
  if (s->uniform) return s->low + rng_below(r, s->high - s->low + 1);
  unsigned doublings = 0;
  while (s->low << (doublings + 1) <= s->high) doublings++;
  size_t base = s->low << rng_below(r, doublings ? doublings : 1);
  size_t top = base * 2 < s->high ? base * 2 : s->high;
  return base + rng_below(r, top - base + 1);
}

_Noreturn static inline void give_up(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(1);
}

/* Its address and size stand at its start; the first byte of every page and the last byte are written. */
static inline void *object_mark(void *memory, size_t size) {
  uint64_t *words = memory;
  if (!words) give_up("out of memory");
  for (size_t at = TOUCH_STEP; at < size; at += TOUCH_STEP) ((char *)memory)[at] = 1;
  ((char *)memory)[size - 1] = 1;
  words[0] = (uint64_t)(uintptr_t)memory ^ TAG;
  words[1] = size;
  return memory;
}

static inline void *object_new(size_t size) {
  if (size < SMALLEST) size = SMALLEST;
  return object_mark(malloc(size), size);
}

static inline size_t object_check(const void *memory) {
  const uint64_t *words = memory;
  if (words[0] != ((uint64_t)(uintptr_t)memory ^ TAG)) give_up("an object has been overwritten");
  return (size_t)words[1];
}

static inline void object_free(void *memory) {
  if (!memory) return;
  object_check(memory);
  free(memory);
}

static inline void shuffle(void **items, size_t n, struct rng *r) {
  for (size_t i = n; i > 1; i--) {
    size_t j = rng_below(r, i);
    void *other = items[j];
    items[j] = items[i - 1];
    items[i - 1] = other;
  }
}

static inline void **pointers_new(size_t n) {
  void **items = calloc(n ? n : 1, sizeof *items);
  if (!items) give_up("out of memory");
  return items;
}

static inline size_t number(const char *text) {
  char *end;
  unsigned long long value = strtoull(text, &end, 10);
  if (*end || end == text) give_up("not a number");
  return (size_t)value;
}

/* Live objects with holes between them, as a program has them that has thrown most of its data away, and work on them:
 * most of it reads, some replaces objects of a small hot part, so that the rest lies still. Used by one thread. */
struct fragmented {
  void **live, **hot;
  size_t live_count, hot_count;
};

static inline struct fragmented fragmented_new(size_t bytes, size_t keep_percent, const struct sizes *s,
                                               struct rng *r) {
  struct fragmented f = {0};
  size_t capacity = bytes / s->low + 1, n = 0;
  void **all = pointers_new(capacity);
  for (size_t sum = 0; sum < bytes && n < capacity;) {
    size_t size = sizes_pick(s, r);
    all[n++] = object_new(size);
    sum += size;
  }
  f.live = all;
  for (size_t i = 0; i < n; i++)
    if (rng_below(r, 100) < keep_percent)
      f.live[f.live_count++] = all[i];
    else
      object_free(all[i]);
  f.hot_count = f.live_count / 50 + 1;
  f.hot = pointers_new(f.hot_count);
  return f;
}

static inline uint64_t fragmented_work(struct fragmented *f, size_t operations, const struct sizes *s, struct rng *r) {
  uint64_t sum = 0;
  for (size_t i = 0; i < operations; i++) {
    if (f->live_count) sum += object_check(f->live[rng_below(r, f->live_count)]);
    if (i % 4 == 0) {
      void **slot = &f->hot[rng_below(r, f->hot_count)];
      object_free(*slot);
      *slot = object_new(sizes_pick(s, r));
    }
  }
  return sum;
}

static inline void fragmented_free(struct fragmented *f) {
  for (size_t i = 0; i < f->live_count; i++) object_free(f->live[i]);
  for (size_t i = 0; i < f->hot_count; i++) object_free(f->hot[i]);
  free(f->live);
  free(f->hot);
}

#endif
