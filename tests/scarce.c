/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is done where memory is short, in a memory control group of the test's own (needs to be allowed to make one).
 *
 * growth: a program that keeps one in eight of what it allocates, each batch of a size of its own, until the kernel
 * ends it at the limit of its group. Spans of one batch are of no use to the next, so what is not meshed is lost: it
 * must get most of the way that it gets under libc's malloc, which can use what is free for any size. filling: all of
 * it is kept, in sizes that are size classes; it must get as far as under libc's malloc. pressure: a
 * process at rest keeps unused pages, as its decay time is long, until others in its group wait for memory.
 */
#include "test.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { LIMIT_MIB = 48, BATCH = 2 << 20, MIN_SIZE = 64, MAX_SIZE = 1024, KEEP = 8, UNUSED_MIB = 32, PRESSERS = 12 };

static struct mesh_api api;
static uint64_t seed;
static const char *self;

/* ---- the group ---- */

static char group[256];
static bool version_1;

static bool write_file(const char *directory, const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));
  if (fd >= 0) close(fd);
  return n > 0;
}

static bool limit_group(void) {
  char bytes[32];
  snprintf(bytes, sizeof bytes, "%d", LIMIT_MIB << 20);
  return write_file(group, version_1 ? "memory.limit_in_bytes" : "memory.max", bytes);
}

static void remove_group(void) {
  for (int i = 0; i < 100 && rmdir(group) < 0 && errno == EBUSY; i++) sleep_ns(20000000);
}

static bool make_group(void) {
  static const char *const at[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/memory"};
  for (int i = 0; i < 2; i++) {
    version_1 = i == 1;
    snprintf(group, sizeof group, "%s/mesh-uffd-test-%d", at[i], (int)getpid());
    if (mkdir(group, 0755) < 0) continue;
    write_file(group, "memory.swap.max", "0");
    if (limit_group()) return true;
    rmdir(group);
  }
  return false;
}

static void join_group(void) {
  CHECKF(write_file(group, "cgroup.procs", "0"), "%s cannot be joined", group);
}

/* Runs a part of this program in the group. */
static pid_t run(const char *part, bool preloaded, const char *decay) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child) return child;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  join_group();
  if (!preloaded) unsetenv("LD_PRELOAD");
  if (decay) setenv("MESH_UFFD_DECAY_MS", decay, 1);
  execl("/proc/self/exe", self, part, group, (char *)NULL);
  FAIL("exec");
}

/* What a part tells those who wait for it. */
static struct shared { _Atomic uint64_t live, phase; } * shared;

static int shared_fd;

static void share(int fd) {
  shared_fd = fd;
  shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(shared != MAP_FAILED);
}

/* ---- growth ---- */

static void grow(void) {
  enum { MOST = BATCH / MIN_SIZE + 1 };
  static void *p[MOST];
  struct rng rng = rng_from(seed, 1);
  for (;;) {
    size_t size = MIN_SIZE + rng_below(&rng, MAX_SIZE - MIN_SIZE), n = BATCH / size;
    for (size_t i = 0; i < n; i++) {
      p[i] = malloc(size);
      if (!p[i]) _exit(3);
      memset(p[i], 1, size);
    }
    for (size_t i = 0; i < n; i++)
      if (rng_below(&rng, KEEP))
        free(p[i]);
      else
        atomic_fetch_add(&shared->live, size);
  }
}

static void fill(void) {
  static const size_t sizes[] = {64, 96, 128, 192, 256, 384, 512, 768, 1024};
  struct rng rng = rng_from(seed, 1);
  for (;;) {
    size_t size = sizes[rng_below(&rng, sizeof sizes / sizeof *sizes)];
    for (size_t n = BATCH / 8 / size; n; n--) {
      void *p = malloc(size);
      if (!p) _exit(3);
      memset(p, 1, size);
      atomic_fetch_add(&shared->live, size);
    }
  }
}

static double live_at_the_end(const char *part, bool preloaded) {
  int status;
  atomic_store(&shared->live, 0);
  pid_t child = run(part, preloaded, NULL);
  CHECK(waitpid(child, &status, 0) == child);
  CHECKF(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status %#x: not ended by the kernel", status);
  return (double)atomic_load(&shared->live) / (1 << 20);
}

static void growth(void) {
  double libc = live_at_the_end("grow", false), ours = live_at_the_end("grow", true);
  printf("live at the end, in a group of %d MiB: %.1f MiB, under libc's malloc %.1f\n", LIMIT_MIB, ours, libc);
  if (tier_is_full((uint32_t)atomic_load(&shared->phase)))
    CHECKF(ours > 0.6 * libc, "the rest is lost"); /* 0.3 without compaction before growth; 0.8 on a quiet machine */
}

static void filling(void) {
  double libc = live_at_the_end("fill", false), ours = live_at_the_end("fill", true);
  printf("the same where all of it is kept: %.1f MiB, under libc's malloc %.1f\n", ours, libc);
  CHECKF(ours > 0.99 * libc, "memory of ours is in the way");
}

/* ---- pressure ---- */

static long resident_kb(pid_t pid) {
  char path[64], text[128];
  snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (fd >= 0) close(fd);
  text[n > 0 ? n : 0] = 0;
  const char *second = strchr(text, ' ');
  return second ? strtol(second, NULL, 10) * (sysconf(_SC_PAGESIZE) / 1024) : -1;
}

/* Enough that is sparse for the engine to start, and a lot that is unused. */
static void be_at_rest(void) {
  enum { SMALL = 20000 };
  static void *small[SMALL];
  char *large = malloc((size_t)UNUSED_MIB << 20);
  memset(large, 1, (size_t)UNUSED_MIB << 20);
  for (int i = 0; i < SMALL; i++) small[i] = memset(malloc(200), 1, 200);
  for (int i = 0; i < SMALL; i++)
    if (i % 10) free(small[i]);
  sleep_ns(1500000000);
  free(large);
  atomic_store(&shared->phase, 1);
  for (;;) pause();
}

/* Looks at pages of a file that does not fit, here and there: what it waits for was there a moment ago. */
static void press(void) {
  struct rng rng = rng_from(seed, (uint64_t)getpid());
  const volatile char *file = mmap(NULL, 2 * LIMIT_MIB << 20, PROT_READ, MAP_SHARED, shared_fd + 1, 0);
  CHECK(file != MAP_FAILED && madvise((void *)(uintptr_t)file, 2 * LIMIT_MIB << 20, MADV_RANDOM) == 0);
  for (;;) (void)file[rng_below(&rng, 2 * LIMIT_MIB << 20)];
}

static bool make_file(void) {
  static char buf[1 << 20];
  char path[] = "/var/tmp/mesh-uffd-XXXXXX";
  int fd = mkstemp(path);
  if (fd < 0) return false;
  unlink(path);
  for (int i = 0; i < 2 * LIMIT_MIB; i++)
    if (write(fd, buf, sizeof buf) != sizeof buf) return false;
  fsync(fd); /* what is cached now belongs to another group */
  posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  return dup2(fd, shared_fd + 1) >= 0;
}

/* Microseconds in which some task of the machine has waited for memory so far. */
static unsigned long long stalled_us(void) {
  unsigned long long us = 0;
  FILE *f = fopen("/proc/pressure/memory", "re");
  if (f && fscanf(f, "some %*s %*s %*s total=%llu", &us) != 1) us = 0;
  if (f) fclose(f);
  return us;
}

static void pressure(void) {
  if (access("/proc/pressure/memory", R_OK) < 0 || !make_file()) {
    printf("pressure: not here\n");
    return;
  }
  atomic_store(&shared->phase, 0);
  pid_t child = run("rest", true, "1800000");
  while (!atomic_load(&shared->phase)) sleep_ns(10000000);
  sleep_ns(5000000000U);
  long before = resident_kb(child), after = before;
  CHECKF(before > UNUSED_MIB * 1024, "%ld kB: it did not keep what it freed", before);
  pid_t pressers[PRESSERS];
  for (int i = 0; i < PRESSERS; i++) pressers[i] = run("press", false, NULL);
  uint64_t began = now_ns(), since = began;
  unsigned long long before_us = stalled_us();
  double stalled = 0; /* the largest share of a window of two seconds */
  do {
    sleep_ns(50000000);
    after = resident_kb(child);
    if (now_ns() - since < 2000000000U) continue;
    double share = (double)(stalled_us() - before_us) * 1000 / (double)(now_ns() - since);
    if (share > stalled) stalled = share;
    since = now_ns();
    before_us = stalled_us();
  } while (after > before - UNUSED_MIB * 1024 * 9 / 10 && now_ns() - began < 15000000000U);
  printf("resident: %ld kB; %.1f s after the pressure began %ld kB; tasks waited %.0f %% of the time\n", before,
         (double)(now_ns() - began) / 1e9, after, stalled * 100);
  kill(child, SIGKILL);
  for (int i = 0; i < PRESSERS; i++) kill(pressers[i], SIGKILL);
  waitpid(child, NULL, 0);
  for (int i = 0; i < PRESSERS; i++) waitpid(pressers[i], NULL, 0);
  /* A twentieth of the time is pressure. Readers that wait for processors, on a machine that others use, do not make
   * it. */
  if (after > before - UNUSED_MIB * 1024 * 9 / 10 && stalled < 0.1)
    printf("pressure: there was too little of it to be noticed\n");
  else
    CHECKF(after <= before - UNUSED_MIB * 1024 * 9 / 10, "pressure was not noticed");
}

/* ---- */

/* Which tier this machine gives. */
static uint32_t tier_here(void) {
  void *p = malloc(1 << 16);
  mesh_api_compact(&api);
  free(p);
  return mesh_api_stats(&api).tier;
}

int main(int argc, char **argv) {
  enum { SHARED_FD = 100 };
  self = argv[0];
  if (argc > 2) {
    const char *text = getenv("MESH_UFFD_TEST_SEED");
    seed = text ? strtoull(text, NULL, 0) : 1;
    share(SHARED_FD);
    if (!strcmp(argv[1], "grow")) grow();
    if (!strcmp(argv[1], "fill")) fill();
    if (!strcmp(argv[1], "rest")) be_at_rest();
    if (!strcmp(argv[1], "press")) press();
    return 1;
  }
  seed = test_begin();
  api = mesh_api_find();
  test_needs_library(&api);
  test_watchdog(110);
  char text[32];
  snprintf(text, sizeof text, "%llu", (unsigned long long)seed);
  setenv("MESH_UFFD_TEST_SEED", text, 1);
  if (!make_group()) {
    printf("skipped: no memory control group can be made here\n");
    return TEST_SKIPPED;
  }
  pid_t child = fork(); /* whatever becomes of it, the group goes */
  CHECK(child >= 0);
  if (child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    remove_group();
    return status ? 1 : 0;
  }
  test_watchdog(100);
  int fd = memfd_create("scarce", 0);
  CHECK(fd >= 0 && ftruncate(fd, 4096) == 0 && dup2(fd, SHARED_FD) == SHARED_FD);
  share(SHARED_FD);
  atomic_store(&shared->phase, tier_here());
  growth();
  filling();
  pressure();
  return 0;
}
