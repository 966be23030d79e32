/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is on different nodes of a machine is not packed together: two nodes are made up (MESH_UFFD_TEST_NODES), every
 * second run of 256 KiB is on the other one, and no mesh file may be shown by runs of both. It must hold for spans that
 * were packed once, and when what thinned out is packed again.
 */
#include "test.h"

enum { OBJECTS = 160000, SIZE = 256, FILES = 4096, RUN_SHIFT = 18 };

static struct {
  unsigned long inode;
  unsigned seen; /* bit 0: shown by even runs, bit 1: by odd ones */
} file[FILES];

/* Returns how many files there are, and on which nodes all of them, in *nodes. */
static int look_at_files(unsigned *nodes) {
  FILE *maps = fopen("/proc/self/maps", "r");
  char line[512];
  int files = 0, i;
  CHECK(maps);
  *nodes = 0;
  while (fgets(line, sizeof line, maps)) {
    unsigned long from, to, inode;
    char modes[8];
    if (!strstr(line, "memfd:mesh") || sscanf(line, "%lx-%lx %7s %*x %*s %lu", &from, &to, modes, &inode) != 4)
      continue;
    if (modes[3] == 's') continue; /* the library's own window */
    for (i = 0; i < files && file[i].inode != inode; i++) {
    }
    CHECK(i < FILES);
    if (i == files) file[files].seen = 0, file[files++].inode = inode;
    for (unsigned long run = from >> RUN_SHIFT; run <= (to - 1) >> RUN_SHIFT; run++) file[i].seen |= 1U << run % 2;
    CHECKF(file[i].seen != 3, "file %lu is shown by runs of both nodes", inode);
    *nodes |= file[i].seen;
  }
  fclose(maps);
  return files;
}

int main(int argc, char **argv) {
  static unsigned char *object[OBJECTS];
  (void)argc;
  if (!getenv("MESH_UFFD_TEST_NODES")) {
    setenv("MESH_UFFD_TEST_NODES", "2", 1);
    execv("/proc/self/exe", argv);
    FAIL("exec");
  }
  uint64_t seed = test_begin();
  struct mesh_api api = mesh_api_find();
  struct rng rng = rng_from(seed, 0);
  test_needs_library(&api);
  test_watchdog(60);
  for (int i = 0; i < OBJECTS; i++) {
    object[i] = malloc(SIZE);
    CHECK(object[i]);
    pattern_fill(object[i], SIZE, seed + (uint64_t)i);
  }
  for (int round = 0; round < 3; round++) {
    for (int i = 0; i < OBJECTS; i++)
      if (object[i] && rng_below(&rng, round ? 3 : 10)) {
        free(object[i]);
        object[i] = NULL;
      }
    unsigned nodes;
    size_t freed = mesh_api_compact(&api);
    int files = look_at_files(&nodes);
    struct mesh_uffd_stats s = mesh_api_stats(&api);
    printf("round %d: %zu kB given back, %d files, %llu meshes\n", round, freed / 1024, files,
           (unsigned long long)s.meshes);
    if (tier_is_full(s.tier)) CHECKF(files && nodes == 3, "nothing to see: nodes %x", nodes);
    for (int i = 0; i < OBJECTS; i++)
      if (object[i]) CHECK_PATTERN(object[i], SIZE, seed + (uint64_t)i);
  }
  return 0;
}
