/* SPDX-License-Identifier: Apache-2.0 */
/* usage: speed_pair SIZE LOOPS: each loop makes 1,000 objects and frees them in an order that is random, but the same
 * in each loop. SIZE 0 calls functions that do nothing instead: what the loop itself costs. Run by bench/instructions.
 */
#include "bench/speed.h"

enum { OBJECTS = 1000 };

static void *no_malloc(size_t size) {
  (void)size;
  return NULL;
}

static void no_free(void *memory) {
  (void)memory;
}

int main(int argc, char **argv) {
  static size_t order[OBJECTS];
  static void *objects[OBJECTS];
  if (argc != 3) give_up("usage: speed_pair SIZE LOOPS");
  size_t size = number(argv[1]), loops = number(argv[2]);
  void *(*volatile allocate)(size_t) = size ? malloc : no_malloc;
  void (*volatile release)(void *) = size ? free : no_free;
  void *(*make)(size_t) = allocate;
  void (*drop)(void *) = release;
  struct rng rng = {TAG};
  for (size_t i = 0; i < OBJECTS; i++) order[i] = i;
  for (size_t i = OBJECTS; i > 1; i--) {
    size_t j = rng_below(&rng, i), other = order[j];
    order[j] = order[i - 1];
    order[i - 1] = other;
  }
  for (size_t n = 0; n < loops; n++) {
    for (size_t i = 0; i < OBJECTS; i++) objects[i] = make(size);
    for (size_t i = 0; i < OBJECTS; i++) drop(objects[order[i]]);
  }
  return 0;
}
