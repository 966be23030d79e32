/* SPDX-License-Identifier: Apache-2.0 */
/* The workloads of bench/run that have one thread. See usage(). */
#include "bench/speed.h"

enum { SEED = 12345 };

static struct rng rng = {SEED};

/* Each operation frees what a random slot holds, and fills it again. */
static void churn(const struct sizes *s, size_t slots, size_t operations) {
  void **items = pointers_new(slots);
  for (size_t i = 0; i < operations; i++) {
    void **slot = &items[rng_below(&rng, slots)];
    object_free(*slot);
    *slot = object_new(sizes_pick(s, &rng));
  }
  for (size_t i = 0; i < slots; i++) object_free(items[i]);
  free(items);
}

/* As churn, but with all slots full from the start. */
static void live(const struct sizes *s, size_t slots, size_t operations) {
  void **items = pointers_new(slots);
  for (size_t i = 0; i < slots; i++) items[i] = object_new(sizes_pick(s, &rng));
  for (size_t i = 0; i < operations; i++) {
    void **slot = &items[rng_below(&rng, slots)];
    object_free(*slot);
    *slot = object_new(sizes_pick(s, &rng));
  }
  for (size_t i = 0; i < slots; i++) object_free(items[i]);
  free(items);
}

enum order { FIFO, LIFO, RANDOM };

/* Fills, frees all, again and again. */
static void burst(const struct sizes *s, enum order order, size_t objects, size_t rounds) {
  void **items = pointers_new(objects);
  for (size_t round = 0; round < rounds; round++) {
    for (size_t i = 0; i < objects; i++) items[i] = object_new(sizes_pick(s, &rng));
    if (order == RANDOM) shuffle(items, objects, &rng);
    for (size_t i = 0; i < objects; i++) object_free(items[order == LIFO ? objects - 1 - i : i]);
  }
  free(items);
}

/* Buffers that grow by half, side by side, until each has the largest size. */
static void growth(const struct sizes *s, size_t buffers, size_t rounds) {
  void **items = pointers_new(buffers);
  size_t *lengths = calloc(buffers, sizeof *lengths);
  if (!lengths) give_up("out of memory");
  for (size_t round = 0; round < rounds; round++) {
    for (size_t i = 0; i < buffers; i++) {
      lengths[i] = s->low;
      items[i] = object_new(s->low);
    }
    for (bool grew = true; grew;) {
      grew = false;
      for (size_t i = 0; i < buffers; i++) {
        if (lengths[i] >= s->high) continue;
        size_t length = lengths[i] + lengths[i] / 2 + rng_below(&rng, 32);
        char *memory = realloc(items[i], length);
        if (!memory) give_up("out of memory");
        if (((uint64_t *)(void *)memory)[1] != lengths[i] || !memory[lengths[i] - 1])
          give_up("realloc has lost the content");
        items[i] = object_mark(memory, length);
        lengths[i] = length;
        grew = true;
      }
    }
    for (size_t i = 0; i < buffers; i++) object_free(items[i]);
  }
  free(lengths);
  free(items);
}

/* Aligned to 16 to 4096 bytes. */
static void aligned(const struct sizes *s, size_t slots, size_t operations) {
  size_t misaligned = 0;
  void **items = pointers_new(slots);
  for (size_t i = 0; i < operations; i++) {
    void **slot = &items[rng_below(&rng, slots)], *memory;
    size_t size = sizes_pick(s, &rng), alignment = (size_t)16 << rng_below(&rng, 9);
    object_free(*slot);
    if (posix_memalign(&memory, alignment, size)) give_up("out of memory");
    misaligned += (uintptr_t)memory % alignment != 0;
    *slot = object_mark(memory, size);
  }
  for (size_t i = 0; i < slots; i++) object_free(items[i]);
  free(items);
  if (misaligned) fprintf(stderr, "note: %zu of %zu blocks were not aligned\n", misaligned, operations);
}

/* A cache of values that are small at first and later large: each new one replaces old ones taken at random until all
 * fit. Most operations look a value up; the last five eighths do nothing else. */
static void cache(const struct sizes *s, size_t bytes, size_t operations) {
  size_t capacity = bytes / s->low + 1, count = 0, held = 0;
  size_t large_values = bytes / s->high * 3 / 2, every = operations / 4 / (large_values + 1) + 1;
  void **items = pointers_new(capacity);
  uint64_t sum = 0;
  for (size_t i = 0; i < operations; i++) {
    size_t size = i < operations / 8 ? s->low : s->high;
    if (i < operations / 8 * 3 && i % (i < operations / 8 ? 2 : every) == 0) {
      while (held + size > bytes || count == capacity) {
        size_t victim = rng_below(&rng, count);
        held -= object_check(items[victim]);
        object_free(items[victim]);
        items[victim] = items[--count];
      }
      items[count++] = object_new(size);
      held += size;
    }
    sum += object_check(items[rng_below(&rng, count)]);
  }
  for (size_t i = 0; i < count; i++) object_free(items[i]);
  free(items);
  if (!sum) give_up("nothing was read");
}

/* Requests come and go; now and then one leaves an object behind, which later requests read. After a third of the time,
 * three quarters of what has been left behind go. */
static void server(const struct sizes *s, size_t per_request, size_t operations) {
  enum { KEPT = 50 };
  size_t requests = operations / per_request, room = operations / KEPT + 1, count = 0;
  void **request = pointers_new(per_request), **kept = pointers_new(room);
  uint64_t sum = 0;
  for (size_t n = 0; n < requests; n++) {
    for (size_t i = 0; i < per_request; i++) request[i] = object_new(sizes_pick(s, &rng));
    for (size_t i = 0; i < per_request; i++)
      if (n < requests / 3 && rng_below(&rng, KEPT) == 0 && count < room)
        kept[count++] = request[i];
      else
        object_free(request[i]);
    for (size_t i = 0; count && i < per_request / 4; i++) sum += object_check(kept[rng_below(&rng, count)]);
    if (n == requests / 3)
      for (size_t i = 0; i < count; i++)
        if (rng_below(&rng, 4) != 0) {
          object_free(kept[i]);
          kept[i--] = kept[--count];
        }
  }
  for (size_t i = 0; i < count; i++) object_free(kept[i]);
  free(kept);
  free(request);
  if (!sum) give_up("nothing was read");
}

static void fragment(const struct sizes *s, size_t bytes, size_t operations) {
  struct fragmented f = fragmented_new(bytes, 25, s, &rng);
  uint64_t sum = fragmented_work(&f, operations, s, &rng);
  fragmented_free(&f);
  if (!sum) give_up("nothing was read");
}

static int usage(void) {
  fputs("usage: speed_single WORKLOAD LOW HIGH COUNT OPERATIONS\n"
        "objects of LOW to HIGH bytes; COUNT is of slots, objects or bytes, and OPERATIONS of operations or rounds:\n"
        "churn, live, aligned, realloc, burst-fifo, burst-lifo, burst-random, server; cache, fragment (COUNT: bytes)\n",
        stderr);
  return 2;
}

int main(int argc, char **argv) {
  if (argc != 6) return usage();
  const char *name = argv[1];
  struct sizes s = {number(argv[2]), number(argv[3]), false};
  size_t count = number(argv[4]), operations = number(argv[5]);
  if (s.low < SMALLEST || s.high < s.low || !count || !operations) return usage();
  if (!strcmp(name, "churn"))
    churn(&s, count, operations);
  else if (!strcmp(name, "live"))
    live(&s, count, operations);
  else if (!strcmp(name, "aligned"))
    aligned(&s, count, operations);
  else if (!strcmp(name, "realloc"))
    growth(&s, count, operations);
  else if (!strcmp(name, "burst-fifo"))
    burst(&s, FIFO, count, operations);
  else if (!strcmp(name, "burst-lifo"))
    burst(&s, LIFO, count, operations);
  else if (!strcmp(name, "burst-random"))
    burst(&s, RANDOM, count, operations);
  else if (!strcmp(name, "server"))
    server(&s, count, operations);
  else if (!strcmp(name, "cache"))
    cache(&s, count, operations);
  else if (!strcmp(name, "fragment"))
    fragment(&s, count, operations);
  else
    return usage();
  return 0;
}
