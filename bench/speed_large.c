/* SPDX-License-Identifier: Apache-2.0 */
/* usage: speed_large COUNT: blocks of 1 to 64 MiB, three at a time, each written page by page and freed. */
#include "bench/speed.h"

enum { MIB = 1 << 20, AT_A_TIME = 3 };

int main(int argc, char **argv) {
  struct rng rng = {TAG};
  void *blocks[AT_A_TIME] = {0};
  size_t count = argc == 2 ? number(argv[1]) : 0;
  if (!count) give_up("usage: speed_large COUNT");
  for (size_t i = 0; i < count; i++) {
    void **slot = &blocks[i % AT_A_TIME];
    object_free(*slot);
    *slot = object_new((size_t)MIB << (i * 5 % 7)); /* 1, 32, 8, 2, 64, 16, 4 MiB */
    if (rng_below(&rng, 4) == 0) {
      object_free(*slot);
      *slot = NULL;
    }
  }
  for (size_t i = 0; i < AT_A_TIME; i++) object_free(blocks[i]);
  return 0;
}
