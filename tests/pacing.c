/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When the mesher works, and how much: it sleeps for good when the program does and there is nothing left to gain, also
 * where something stays in its way; it is there again when the program goes on; unused pages go back by and by, also
 * while the program sleeps; background work takes its share of processor time and no more; a process that forks often
 * is meshed less. Each part is a process of its own, all at once: pacing [PART].
 */
#include "test.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { MOST_OBJECTS = 640000, SIZE = 256, KEEP = 10, MOST_S = 60 /* a busy machine takes its time */ };
static size_t objects = 160000;
static const uint64_t SECOND = 1000000000;

static struct mesh_api api;
static struct rng rng;
static void *object[MOST_OBJECTS];

static bool read_text(const char *path, char *text, size_t room) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : read(fd, text, room - 1);
  if (fd >= 0) close(fd);
  text[n > 0 ? n : 0] = 0;
  return n > 0;
}

/* ---- the library's threads ---- */

enum { TASKS = 16 };
static struct {
  int id;
  uint64_t cpu_ns;
} task[TASKS];

static void visit(int id, void (*f)(int id, const char *directory)) {
  char path[64], name[64];
  snprintf(path, sizeof path, "/proc/self/task/%d/comm", id);
  if (!id || !read_text(path, name, sizeof name)) return;
  if (strncmp(name, "mesh-uffd", 9) != 0 && strncmp(name, "iou-", 4) != 0) return;
  snprintf(path, sizeof path, "/proc/self/task/%d", id);
  f(id, path);
}

/* Calls f for each thread of the library, and each worker that the kernel has for it. Without a call of malloc, which
 * would be activity: so not by readdir. */
static void for_each_task(void (*f)(int id, const char *directory)) {
  static char entries[4096] __attribute__((aligned(8)));
  int fd = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  CHECK(fd >= 0);
  for (long n; (n = syscall(SYS_getdents64, fd, entries, sizeof entries)) > 0;)
    for (long at = 0; at < n;) {
      unsigned short length;
      memcpy(&length, entries + at + 16, sizeof length);
      visit(atoi(entries + at + 19), f);
      at += length;
    }
  close(fd);
}

static void note_cpu(int id, const char *directory) {
  char path[96], text[128];
  snprintf(path, sizeof path, "%s/schedstat", directory);
  if (!read_text(path, text, sizeof text)) return;
  for (int i = 0; i < TASKS; i++)
    if (task[i].id == id || !task[i].id) {
      task[i].id = id;
      task[i].cpu_ns = strtoull(text, NULL, 10);
      return;
    }
  FAIL("too many threads");
}

/* Of all that were ever seen. */
static uint64_t cpu_ns(void) {
  uint64_t sum = 0;
  for_each_task(note_cpu);
  for (int i = 0; i < TASKS; i++) sum += task[i].cpu_ns;
  return sum;
}

static unsigned long switches;

static void add_switches(int id, const char *directory) {
  char path[96], text[4096];
  (void)id;
  snprintf(path, sizeof path, "%s/status", directory);
  if (!read_text(path, text, sizeof text)) return;
  const char *own = strstr(text, "\nvoluntary_ctxt_switches:"), *other = strstr(text, "nonvoluntary_ctxt_switches:");
  if (own) switches += strtoul(own + 25, NULL, 10);
  if (other) switches += strtoul(other + 27, NULL, 10);
}

static unsigned long switches_so_far(void) {
  switches = 0;
  for_each_task(add_switches);
  return switches;
}

/* ---- heaps ---- */

static void fill(void) {
  for (size_t i = 0; i < objects; i++) {
    object[i] = malloc(SIZE);
    CHECK(object[i]);
    memset(object[i], 1, SIZE);
  }
}

static void thin_out(void) {
  for (size_t i = 0; i < objects; i++)
    if (rng_below(&rng, KEEP)) {
      free(object[i]);
      object[i] = NULL;
    }
}

static void empty(void) {
  for (size_t i = 0; i < objects; i++) {
    free(object[i]);
    object[i] = NULL;
  }
}

/* ---- parts ---- */

/* The threads do nothing at all for two seconds, within so many. */
static double until_still(double seconds) {
  uint64_t began = now_ns(), since = began;
  unsigned long last = switches_so_far(), all = last;
  while (now_ns() - since < 2 * SECOND) {
    CHECKF(now_ns() - began < (uint64_t)(seconds * 1e9), "%lu switches in all, and no end", last - all);
    sleep_ns(SECOND / 10);
    unsigned long seen = switches_so_far();
    if (seen != last) since = now_ns();
    last = seen;
  }
  return (double)(since - began) / 1e9;
}

static void rest(void) {
  fill();
  thin_out();
  double first = until_still(MOST_S);
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  printf("still after %.1f s; %llu meshes\n", first, (unsigned long long)s.meshes);
  CHECKF(!tier_is_full(s.tier) || s.meshes, "it slept before it had done its work");
  unsigned long before = switches_so_far();
  empty();
  for (int i = 0; i < 100 && switches_so_far() <= before; i++) sleep_ns(SECOND / 10);
  CHECKF(switches_so_far() > before, "the mesher sleeps on while the program works");
  printf("and again after %.1f s\n", until_still(MOST_S));
}

/* A child shares all pages, which the kernel does not move then. When it has gone, nothing tells. */
static void child_in_the_way(void) {
  fill();
  thin_out();
  sleep_ns(SECOND / 10);
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
  }
  sleep_ns(4 * SECOND);
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  uint64_t meshes = s.meshes, gone;
  kill(child, SIGKILL);
  CHECK(waitpid(child, NULL, 0) == child);
  gone = now_ns();
  if (tier_is_full(s.tier))
    while (s.meshes < meshes + 1000) {
      CHECKF(now_ns() - gone < MOST_S * SECOND, "%llu meshes, %llu before", (unsigned long long)s.meshes,
             (unsigned long long)meshes);
      sleep_ns(SECOND / 10);
      s = mesh_api_stats(&api);
    }
  printf("%llu meshes while the child lived; 1000 more %.1f s after\n", (unsigned long long)meshes,
         (double)(now_ns() - gone) / 1e9);
}

static long resident_kb(void) {
  char text[128];
  CHECK(read_text("/proc/self/statm", text, sizeof text));
  return strtol(strchr(text, ' '), NULL, 10) * (sysconf(_SC_PAGESIZE) / 1024);
}

/* MESH_UFFD_DECAY_MS is 2000: what is freed goes back along a curve that is half way after a second. */
static void decay(void) {
  enum { BYTES = 96 << 20, BLOCKS = 24, DECAY_MS = 2000 };
  void *block[BLOCKS];
  for (int i = 0; i < BLOCKS; i++) {
    block[i] = malloc(BYTES / BLOCKS);
    memset(block[i], 1, BYTES / BLOCKS);
  }
  fill();
  sleep_ns(SECOND / 2);
  long full = resident_kb();
  for (int i = 0; i < BLOCKS; i++) free(block[i]);
  empty();
  uint64_t began = now_ns(), late = 0;
  long kb = full, least = full - (BYTES / 1024) - (long)objects * SIZE / 1024 * 9 / 10;
  double at[3] = {0, 0, 0};
  uint64_t last = began, gap = 0; /* the longest that this thread had to wait: others may have to, too */
  while (now_ns() - began < (DECAY_MS + 1000) * 1000000ULL || (!late && now_ns() - began < MOST_S * SECOND)) {
    sleep_ns(SECOND / 50);
    kb = resident_kb();
    if (now_ns() - last > gap) gap = now_ns() - last;
    last = now_ns();
    double x = (double)(last - began) / (DECAY_MS * 1e6), gone = (double)(full - kb) / (double)(full - least);
    if (x < 0.2 && gone > at[0]) at[0] = gone;
    if (x >= 0.5 && at[1] <= 0) at[1] = gone;
    if (x < 1.15 && gone > at[2]) at[2] = gone;
    if (kb <= least && !late) late = now_ns() - began;
  }
  printf("gone after 0.2, 0.5 and 1.15 of the decay time: %.2f %.2f %.2f; all by %.2f s\n", at[0], at[1], at[2],
         (double)late / 1e9);
  CHECKF(late, "%ld kB are left of %ld, %ld expected", kb, full, least);
  if (gap > SECOND / 10) {
    printf("others had the processors for %.2f s: the curve is not looked at\n", (double)gap / 1e9);
    return;
  }
  CHECKF(at[0] < 0.25, "too soon");
  CHECKF(at[1] > 0.25 && at[1] < 0.8, "not smooth");
  CHECKF(at[2] >= 0.99, "too late: %ld kB are left of %ld, %ld expected", kb, full, least);
}

/* MESH_UFFD_CPU_PERCENT is 1: a minute's worth may be spent at once, and no more. */
static void share(void) {
  enum { SECONDS = 7 };
  objects = MOST_OBJECTS;
  const double credit = 0.6, earned = 0.01 * SECONDS, slack = 0.2;
  uint64_t end = now_ns() + SECONDS * SECOND;
  unsigned rounds = 0;
  while (now_ns() < end) {
    fill();
    thin_out();
    for (int i = 0; i < 10; i++) {
      sleep_ns(SECOND / 10);
      free(malloc(64));
      cpu_ns();
    }
    empty();
    rounds++;
  }
  double used = (double)cpu_ns() / 1e9;
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  printf("%u rounds: %.3f s of a processor, %.3f expected at most; %llu passes\n", rounds, used, credit + earned,
         (unsigned long long)s.passes);
  CHECKF(used < credit + earned + slack, "too much");
}

/* ---- a process that forks often ---- */

enum { FORKED_MAPPING_NS = 600, WAIT_S = 4 };

/* As many forks as cost the mesher so much, at what is charged for each mapping of ours. */
static void fork_often(double seconds) {
  uint64_t mappings = mesh_api_stats(&api).mappings;
  size_t forks = (size_t)(seconds * 1e9 / ((double)mappings * FORKED_MAPPING_NS)) + 1;
  uint64_t least = UINT64_MAX;
  for (size_t i = 0; i < forks; i++) {
    uint64_t began = now_ns();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) _exit(0);
    uint64_t took = now_ns() - began;
    if (took < least) least = took;
    CHECK(waitpid(child, NULL, 0) == child);
    free(malloc(1 << 20)); /* activity, so that each tick charges its share */
  }
  printf("%zu forks with %llu mappings, the quickest in %.2f ms\n", forks, (unsigned long long)mappings,
         (double)least / 1e6);
}

/* Meshes within so many seconds, at most; fewer are waited for if `enough` come. */
static uint64_t new_meshes(uint64_t enough) {
  uint64_t before = mesh_api_stats(&api).meshes, until = now_ns() + WAIT_S * SECOND, n = 0;
  while (now_ns() < until && (n = mesh_api_stats(&api).meshes - before) < enough) {
    sleep_ns(SECOND / 10);
    free(malloc(64));
  }
  return n;
}

static double pressure_s(void) {
  char text[256];
  if (!read_text("/proc/pressure/memory", text, sizeof text)) return 0;
  const char *total = strstr(text, "total=");
  return total ? strtod(total + 6, NULL) / 1e6 : 0;
}

/* Thins out the first half of the objects, forks for more than a minute's worth of processor time, thins out the rest.
 * Returns how much of that is meshed, of what the first half was. */
static double meshed_after_forks(double seconds) {
  fill();
  size_t all = objects;
  objects = all / 2;
  thin_out();
  uint64_t first = 0;
  for (int i = 0; i < 5 && first <= 1000; i++) first += new_meshes(UINT64_MAX); /* a busy machine takes longer */
  if (!tier_is_full(mesh_api_stats(&api).tier)) return -1;
  CHECKF(first > 1000, "%llu meshes before the forks", (unsigned long long)first);
  fork_often(seconds);
  sleep_ns(SECOND / 4); /* for the last of them */
  for (size_t i = objects; i < all; i++)
    if (rng_below(&rng, KEEP)) free(object[i]);
  uint64_t second = new_meshes(first / 2);
  printf("%llu meshes before, %llu after\n", (unsigned long long)first, (unsigned long long)second);
  return (double)second / (double)first;
}

/* MESH_UFFD_CPU_PERCENT is 1, a minute of which is 0.6 s: what is charged for the forks uses that up, and the mesher
 * waits, so forks have no more mappings to copy. Memory pressure is no reason to wait. */
static void forks(void) {
  double pressed = pressure_s(), share = meshed_after_forks(1.2);
  if (pressure_s() - pressed < 0.1) CHECKF(share < 0.1, "meshed on");
}

/* MESH_UFFD_CPU_PERCENT is 50: the same forks do not matter. */
static void rich_forks(void) {
  double share = meshed_after_forks(1.2);
  CHECKF(share < 0 || share >= 0.5, "forks are in the way");
}

/* ---- */

static const struct part {
  const char *name;
  void (*run)(void);
  const char *option, *value;
} parts[] = {{"rest", rest, NULL, NULL},
             {"child", child_in_the_way, NULL, NULL},
             {"decay", decay, "MESH_UFFD_DECAY_MS", "2000"},
             {"share", share, "MESH_UFFD_CPU_PERCENT", "1"},
             {"forks", forks, "MESH_UFFD_CPU_PERCENT", "1"},
             {"rich-forks", rich_forks, "MESH_UFFD_CPU_PERCENT", "50"}};
enum { PARTS = sizeof parts / sizeof *parts };

static pid_t begin(const struct part *part) {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child) return child;
  if (part->option) setenv(part->option, part->value, 1);
  execl("/proc/self/exe", "pacing", part->name, (char *)NULL);
  FAIL("exec");
}

int main(int argc, char **argv) {
  uint64_t seed = test_begin();
  rng = rng_from(seed, 0);
  api = mesh_api_find();
  test_needs_library(&api);
  test_watchdog(240);
  if (argc > 1) {
    for (int i = 0; i < PARTS; i++)
      if (!strcmp(argv[1], parts[i].name)) parts[i].run();
    return 0;
  }
  char text[32];
  snprintf(text, sizeof text, "%llu", (unsigned long long)seed);
  setenv("MESH_UFFD_TEST_SEED", text, 1);
  pid_t child[PARTS];
  int failed = 0, status;
  for (int i = 0; i < PARTS; i++) child[i] = begin(&parts[i]);
  for (int i = 0; i < PARTS; i++) {
    CHECK(waitpid(child[i], &status, 0) == child[i]);
    if (status) printf("%s: status %#x\n", parts[i].name, status), failed = 1;
  }
  return failed;
}
