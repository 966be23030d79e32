/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A heap that is worth meshing, for the scripts that run it under LIB: sparse [SECONDS [VARIANT]]. One thread builds
 * 200,000 stamped objects, frees nine of ten at random, and then does a little for up to SECONDS (3): the library must
 * mesh by itself. It ends when memory has been under half of its peak for a while. Prints, each on a line of its own:
 * `peak KB` and `pss KB`, `tier N`, `meshes N`, `pages N` of units that are meshed now, `ring N`,
 * `vector N`. Exit status 1 when data is wrong.
 *
 * Variants: `stay` goes on for all of SECONDS; `ways` too, and then until the ring and a vector were used, half a
 * minute at most; `caps` prints a line for each thread too, `caps NAME EFFECTIVE PERMITTED`; `exhaust` allocates until
 * there is no memory (SECONDS is not used), which must be said as malloc does, frees all and starts anew; `probe`
 * prints `tiers` and the numbers of those that this process can have, found out without the library.
 * SPARSE_PATIENT=1: half a minute more, in a full tier, until something was meshed.
 */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>

enum { OBJECTS = 200000, SIZE = 256, KEEP = 10, OTHERS = 64, ROUND_MS = 50, SETTLED_ROUNDS = 6, WAYS_ROUNDS = 600 };

/* Of newer kernels than the headers may be of. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0)
#endif
enum { FEATURE_WP = 1 << 0, FEATURE_MOVE = 1 << 16 };

static struct mesh_api api;
static unsigned char *object[OBJECTS];
static struct {
  unsigned char *p;
  size_t size;
  uint64_t stamp;
} other[OTHERS];

static long pss_kb(void) {
  static char text[4096];
  long kb = -1;
  int fd = open("/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  text[n > 0 ? n : 0] = 0;
  const char *line = strstr(text, "\nPss:");
  if (line) sscanf(line, "\nPss: %ld", &kb);
  return kb;
}

/* ---- the sparse heap ---- */

static void build(uint64_t seed, struct rng *rng) {
  for (size_t i = 0; i < OBJECTS; i++) {
    object[i] = malloc(SIZE);
    CHECK(object[i]);
    pattern_fill(object[i], SIZE, seed + i);
  }
  printf("peak %ld\n", pss_kb());
  for (size_t i = 0; i < OBJECTS; i++)
    if (rng_below(rng, KEEP)) {
      free(object[i]);
      object[i] = NULL;
    }
}

static void verify(uint64_t seed) {
  for (size_t i = 0; i < OBJECTS; i++)
    if (object[i]) CHECK_PATTERN(object[i], SIZE, seed + i);
  for (size_t i = 0; i < OTHERS; i++)
    if (other[i].p) CHECK_PATTERN(other[i].p, other[i].size, other[i].stamp);
}

/* A few mallocs and frees of other sizes. */
static void do_a_little(struct rng *rng) {
  for (int i = 0; i < 8; i++) {
    size_t k = rng_below(rng, OTHERS);
    if (other[k].p) {
      CHECK_PATTERN(other[k].p, other[k].size, other[k].stamp);
      free(other[k].p);
    }
    other[k].size = 300 + rng_size(rng, 17);
    other[k].stamp = rng_next(rng);
    other[k].p = malloc(other[k].size);
    CHECK(other[k].p);
    pattern_fill(other[k].p, other[k].size, other[k].stamp);
  }
}

/* ---- variants ---- */

static void print_caps(void) {
  DIR *tasks = opendir("/proc/self/task");
  struct dirent *task;
  CHECK(tasks);
  while ((task = readdir(tasks))) {
    char path[300], line[256], name[64] = "?";
    unsigned long long effective = ~0ULL, permitted = ~0ULL;
    if (task->d_name[0] == '.') continue;
    snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
    FILE *status = fopen(path, "r");
    if (!status) continue; /* it has ended meanwhile */
    while (fgets(line, sizeof line, status)) {
      sscanf(line, "Name: %63s", name);
      sscanf(line, "CapEff: %llx", &effective);
      sscanf(line, "CapPrm: %llx", &permitted);
    }
    fclose(status);
    printf("caps %s %016llx %016llx\n", name, effective, permitted);
  }
  closedir(tasks);
}

struct block {
  struct block *next;
  size_t size;
};

/* From large to small, until nothing of any size is left. */
static size_t take_all(struct block **all) {
  size_t bytes = 0;
  static const size_t sizes[] = {1 << 20, 65536, 4096, 256, 32};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
    for (;;) {
      errno = 0;
      struct block *b = malloc(sizes[i]);
      if (!b) {
        CHECKF(errno == ENOMEM, "malloc of %zu bytes fails", sizes[i]);
        break;
      }
      pattern_fill(b, sizes[i], sizes[i] ^ (uintptr_t)b);
      *b = (struct block){*all, sizes[i]};
      *all = b;
      bytes += sizes[i];
    }
  return bytes;
}

static void give_all(struct block *b) {
  enum { HEAD = sizeof(struct block) };
  while (b) {
    struct block *next = b->next;
    uint64_t seed = b->size ^ (uintptr_t)b;
    unsigned char *p = (unsigned char *)b;
    for (size_t at = HEAD; at < b->size; at += 8) {
      uint64_t word = pattern_word(seed, at / 8);
      CHECKF(memcmp(p + at, &word, 8) == 0, "%zu bytes at %p are wrong at offset %zu", b->size, (void *)p, at);
    }
    free(b);
    b = next;
  }
}

static void exhaust(void) {
  struct block *all = NULL;
  size_t first = take_all(&all);
  errno = 0;
  CHECK(opaque(calloc(1000, opaque_size(100))) == NULL && errno == ENOMEM);
  void *kept = all, *aligned = &first;
  errno = 0;
  CHECK(opaque(realloc(all, opaque_size(1 << 20))) == NULL && errno == ENOMEM && all == kept);
  errno = 0;
  CHECK(opaque(aligned_alloc(4096, opaque_size(65536))) == NULL && errno == ENOMEM);
  CHECK(posix_memalign(&aligned, 4096, opaque_size(65536)) == ENOMEM && aligned == &first);
  errno = 0;
  CHECK(opaque(malloc(opaque_size(SIZE_MAX / 4))) == NULL && errno == ENOMEM);
  give_all(all);
  all = NULL;
  size_t second = take_all(&all);
  give_all(all);
  mesh_api_compact(&api);
  printf("exhausted %zu %zu\n", first >> 10, second >> 10);
  CHECKF(second >= first / 10 * 8, "%zu bytes the first time, %zu the second", first, second);
}

static uint64_t features(int fd) {
  struct uffdio_api handshake = {.api = UFFD_API};
  if (fd < 0) return 0;
  uint64_t has = ioctl(fd, UFFDIO_API, &handshake) == 0 ? handshake.features : 0;
  close(fd);
  return has;
}

static void probe(void) {
  struct utsname u;
  unsigned major = 0, minor = 0, patch = 0;
  CHECK(uname(&u) == 0);
  sscanf(u.release, "%u.%u.%u", &major, &minor, &patch);
  printf("tiers");
  if (access("/proc/self/pagemap", R_OK) == 0 && (major > 5 || (major == 5 && minor >= 9))) {
    uint64_t has = 0;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device >= 0) {
      has = features(ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC));
      close(device);
    }
    if (!has) has = features((int)syscall(SYS_userfaultfd, O_CLOEXEC));
    bool move = major > 6 || (major == 6 && (minor >= 17 || (minor == 12 && patch >= 43)));
    bool protect = major > 5 || (major == 5 && minor >= 12);
    if (move && (has & FEATURE_MOVE) && (has & FEATURE_WP)) printf(" 1");
    if (protect && (has & FEATURE_WP)) printf(" 2");
    if (features((int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY))) printf(" 3");
    printf(" 4");
  }
  printf("\n");
}

int main(int argc, char **argv) {
  const char *variant = argc > 2 ? argv[2] : "";
  unsigned long long ms = (unsigned long long)((argc > 1 ? strtod(argv[1], NULL) : 3) * 1000) * test_slow();
  uint64_t seed = test_begin();
  struct rng rng = rng_from(seed, 0);
  test_watchdog(120 + (unsigned)(ms / 1000));
  api = mesh_api_find();
  if (strcmp(variant, "probe") == 0 || strcmp(variant, "exhaust") == 0) {
    if (variant[0] == 'p')
      probe();
    else
      exhaust();
    return 0;
  }

  build(seed, &rng);
  long full = pss_kb(), now = full;
  uint64_t end = now_ns() + ms * 1000000;
  for (int settled = 0;
       now_ns() < end && (settled < SETTLED_ROUNDS || strcmp(variant, "stay") == 0 || strcmp(variant, "ways") == 0);) {
    sleep_ns(ROUND_MS * 1000000);
    do_a_little(&rng);
    now = pss_kb();
    settled = mesh_api_stats(&api).meshes && now < full / 2 ? settled + 1 : 0;
  }
  /* A busy machine takes its time. */
  for (int i = 0; env_flag("SPARSE_PATIENT") && i < WAYS_ROUNDS; i++) {
    struct mesh_uffd_stats s = mesh_api_stats(&api);
    if (s.meshes || !tier_is_full(s.tier)) break;
    sleep_ns(ROUND_MS * 1000000);
    do_a_little(&rng);
  }
  /* Until every way to the kernel was taken, or is not there. */
  for (int i = 0; strcmp(variant, "ways") == 0 && i < WAYS_ROUNDS; i++) {
    struct mesh_uffd_stats ways = mesh_api_stats(&api);
    if (ways.ops_ring && ways.ops_vector) break;
    sleep_ns(ROUND_MS * 1000000);
    do_a_little(&rng);
  }
  verify(seed);
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  printf("pss %ld\n", pss_kb());
  printf("tier %u\n", s.tier);
  printf("meshes %llu\n", (unsigned long long)s.meshes);
  printf("pages %llu\n", (unsigned long long)s.meshed_pages);
  printf("ring %llu\n", (unsigned long long)s.ops_ring);
  printf("vector %llu\n", (unsigned long long)s.ops_vector);
  if (strcmp(variant, "caps") == 0) print_caps();
  for (size_t i = 0; i < OBJECTS; i++) free(object[i]);
  for (size_t i = 0; i < OTHERS; i++) free(other[i].p);
  return 0;
}
