/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fills some memory, frees nineteen objects in twenty at random, compacts, and says what became of it.
 *
 *   cc compact.c $(pkg-config --cflags --libs mesh-uffd) -o compact
 */
#include <mesh-uffd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OBJECTS = 400000, BYTES = 200 };

int main(void) {
  static char *object[OBJECTS];
  for (size_t i = 0; i < OBJECTS; i++) {
    object[i] = malloc(BYTES);
    if (!object[i]) return 1;
    memset(object[i], (int)(i % 251), BYTES);
  }
  for (size_t i = 0; i < OBJECTS; i++)
    if (rand() % 20) {
      free(object[i]);
      object[i] = NULL;
    }

  size_t given_back = mesh_uffd_compact();

  for (size_t i = 0; i < OBJECTS; i++)
    for (size_t k = 0; object[i] && k < BYTES; k++)
      if (object[i][k] != (char)(i % 251)) {
        fprintf(stderr, "object %zu is damaged\n", i);
        return 1;
      }

  struct mesh_uffd_stats stats = {.size = sizeof stats};
  if (mesh_uffd_get_stats(&stats)) return 1;
  printf("mesh-uffd %s, tier %u: %.1f MB given back, %.1f MB of them by meshing; %.1f MB live\n", mesh_uffd_version(),
         (unsigned)stats.tier, (double)given_back / 1e6, (double)stats.freed_bytes / 1e6,
         (double)stats.live_bytes / 1e6);
  return 0;
}
