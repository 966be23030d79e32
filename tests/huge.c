/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transparent huge pages, asked for (MESH_UFFD_HUGE_PAGES=2), so that the machine's setting does not matter: a large
 * block and the growth of a large heap have them; when most of a heap has died nothing is kept by a huge page that is
 * mostly unused, in the full tiers after a pass and in all of them where whole spans have died. With 0 there are none.
 */
#include "test.h"

#include <fcntl.h>
#include <malloc.h>
#include <sys/wait.h>

enum { SIZE = 512, PAGE = 4096, IN_HUGE = 512 };
static const size_t MIB = 1 << 20;

static struct mesh_api api;

static size_t anon_huge(void) {
  FILE *f = fopen("/proc/self/smaps_rollup", "r");
  char line[256];
  size_t kb = 0;
  CHECK(f);
  while (fgets(line, sizeof line, f))
    if (sscanf(line, "AnonHugePages: %zu kB", &kb) == 1) break;
  fclose(f);
  return kb * 1024;
}

/* ---- a huge page of which only a part is mapped keeps all of its memory: root can see that ---- */

struct census {
  size_t whole, partly; /* huge pages */
};

static bool read_at(int fd, void *to, size_t n, uint64_t index) {
  return pread(fd, to, n * 8, (off_t)(index * 8)) == (ssize_t)(n * 8);
}

/* Looks at the 2 MiB at `at`: where the kernel's pages are parts of huge ones, all of that must be mapped here. */
static void look_at(int map, int flags, uintptr_t at, struct census *census) {
  static uint64_t entry[IN_HUGE];
  if (!read_at(map, entry, IN_HUGE, at / PAGE)) return;
  size_t parts = 0;
  for (size_t i = 0; i < IN_HUGE; i++) {
    uint64_t f = 0, frame = entry[i] & (((uint64_t)1 << 55) - 1);
    if (!(entry[i] >> 63) || (entry[i] >> 61 & 1) || !frame || !read_at(flags, &f, 1, frame)) continue;
    parts += f >> 22 & 1; /* KPF_THP */
  }
  if (parts) *(parts == IN_HUGE ? &census->whole : &census->partly) += 1;
}

static bool take_census(struct census *census) {
  int map = open("/proc/self/pagemap", O_RDONLY), flags = open("/proc/kpageflags", O_RDONLY);
  FILE *maps = flags < 0 || map < 0 ? NULL : fopen("/proc/self/maps", "r");
  char line[512];
  memset(census, 0, sizeof *census);
  uintptr_t last = 0;
  while (maps && fgets(line, sizeof line, maps)) {
    uintptr_t from, to;
    if (sscanf(line, "%lx-%lx rw-p", &from, &to) != 2 || !strstr(line, " 00:00 0") || strchr(line, '[')) continue;
    for (uintptr_t at = from & ~(uintptr_t)(2 * MIB - 1); at < to; at += 2 * MIB)
      if (at != last && api.is_ours((void *)(at < from ? from : at))) look_at(map, flags, last = at, census);
  }
  bool seen = maps != NULL;
  if (maps) fclose(maps);
  close(map);
  close(flags);
  return seen;
}

/* ---- what is tested ---- */

static void large_blocks(uint64_t seed) {
  size_t before = anon_huge(), bytes = 64 * MIB;
  char *p = malloc(bytes);
  CHECK(p);
  pattern_fill(p, bytes, seed);
  CHECKF(anon_huge() >= before + bytes / 4 * 3, "%zu of %zu bytes in huge pages", anon_huge() - before, bytes);
  CHECK((p = realloc(p, bytes / 2 + 12345)));
  CHECK_PATTERN(p, bytes / 2, seed);
  free(p);
  /* what grows by and by */
  p = NULL;
  for (size_t n = 1 << 16; n <= bytes; n += n / 3) {
    CHECK((p = realloc(p, n)));
    if (n > 1 << 16) CHECK_PATTERN(p, n / 16 * 11, seed);
    pattern_fill(p, n, seed);
  }
  CHECK_PATTERN(p, bytes / 2, seed);
  free(p);
  unsigned char *zero = calloc(1, bytes);
  CHECK(zero);
  for (size_t i = 0; i < bytes; i += 997) CHECKF(zero[i] == 0, "calloc, byte %zu", i);
  free(zero);
}

/* clustered: what survives are neighbours, so that whole spans die. */
static void small_objects(uint64_t seed, bool clustered) {
  enum { OBJECTS = 400000 };
  static unsigned char *object[OBJECTS];
  struct rng rng = rng_from(seed, clustered);
  size_t before = anon_huge(), kept = 0;
  for (int i = 0; i < OBJECTS; i++) {
    CHECK((object[i] = malloc(SIZE)));
    pattern_fill(object[i], SIZE, seed + (uint64_t)i);
  }
  size_t huge = anon_huge();
  printf("%zu MiB of small objects: %zu MiB in huge pages\n", OBJECTS * SIZE / MIB, (huge - before) / MIB);
  for (int i = 0; i < OBJECTS; i++)
    if (clustered ? (i / 64) % 16 != 0 : rng_below(&rng, 20) != 0) {
      free(object[i]);
      object[i] = NULL;
    } else {
      kept++;
    }
  malloc_trim(0);
  mesh_api_compact(&api);
  struct census census;
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  if (take_census(&census) && (clustered || tier_is_full(s.tier))) {
    printf("%zu objects left: %zu huge pages whole, %zu partly unmapped\n", kept, census.whole, census.partly);
    CHECKF(census.partly <= 2, "%zu huge pages are mapped in part", census.partly);
  }
  for (int i = 0; i < OBJECTS; i++)
    if (object[i]) {
      CHECK_PATTERN(object[i], SIZE, seed + (uint64_t)i);
      free(object[i]);
    }
  /* so that the next one is the growth of a heap again and not what is left of this one */
  CHECK(clustered || huge > before + 16 * MIB);
}

static void without(void) {
  char *p = malloc(64 * MIB);
  CHECK(p);
  memset(p, 1, 64 * MIB);
  for (int i = 0; i < 200000; i++) *(volatile char *)malloc(SIZE) = 1;
  CHECKF(anon_huge() == 0, "%zu bytes in huge pages", anon_huge());
}

static bool kernel_has_them(void) {
  char text[64] = "";
  int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_RDONLY);
  ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  close(fd);
  return n > 0 && !strstr(text, "[never]") && sysconf(_SC_PAGESIZE) == PAGE;
}

/* Each in a process of its own: what is free and used already gets no huge pages. */
static void run(char *self, const char *setting, const char *part) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    setenv("MESH_UFFD_HUGE_PAGES", setting, 1);
    execl("/proc/self/exe", self, part, (char *)NULL);
    _exit(1);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child);
  CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s, with MESH_UFFD_HUGE_PAGES=%s", part, setting);
}

int main(int argc, char **argv) {
  uint64_t seed = test_begin();
  api = mesh_api_find();
  test_needs_library(&api);
  test_watchdog(120);
  if (!api.present || !kernel_has_them()) {
    printf("skipped: this kernel gives no huge pages\n");
    return TEST_SKIPPED;
  }
  if (argc == 1) {
    run(argv[0], "2", "large");
    run(argv[0], "2", "small");
    run(argv[0], "0", "without");
  } else if (argv[1][0] == 'l') {
    large_blocks(seed);
  } else if (argv[1][0] == 's') {
    small_objects(seed, false);
    small_objects(seed, true);
  } else {
    without();
  }
  return 0;
}
