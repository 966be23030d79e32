/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After a child has gone, memory returns to what it was: a loop of fifty forks over a sparse, meshed heap ends where it
 * began, and what was refused because a child shared it meshes afterwards. Also: raw forks by syscall, _Fork and clone.
 */
#include "test.h"
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OBJECTS = 60000, SIZE = 256, KEEP = 12, FORKS = 50 };

static unsigned char *object[OBJECTS];

static void fill(void) {
  for (int i = 0; i < OBJECTS; i++) {
    object[i] = malloc(SIZE);
    CHECK(object[i]);
    memset(object[i], i & 0xff, SIZE);
  }
}

static void thin(struct rng *rng) {
  for (int i = 0; i < OBJECTS; i++)
    if (object[i] && rng_below(rng, KEEP)) {
      free(object[i]);
      object[i] = NULL;
    }
}

static int wrong(void) {
  for (int i = 0; i < OBJECTS; i++)
    for (int k = 0; object[i] && k < SIZE; k++)
      if (object[i][k] != (unsigned char)i) return i + 1;
  return 0;
}

static long pss_kb(void) {
  static char text[8192];
  FILE *f = fopen("/proc/self/smaps_rollup", "r");
  long kb = -1;
  if (!f) return -1;
  while (fgets(text, sizeof text, f))
    if (sscanf(text, "Pss: %ld", &kb) == 1) break;
  fclose(f);
  return kb;
}

static void child_checks(void) {
  int bad = wrong();
  for (int i = 0; i < OBJECTS; i++)
    if (object[i]) memset(object[i], 0xee, SIZE);
  for (int i = 0; i < 100; i++) free(malloc((size_t)i * 7));
  _exit(bad ? 1 : 0);
}

static int clone_child(void *unused) {
  (void)unused;
  child_checks();
  return 1;
}

typedef pid_t (*fork_fn)(void);
static pid_t by_syscall(void) {
  return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}
static pid_t by_clone(void) {
  static char stack[65536] __attribute__((aligned(64)));
  return clone(clone_child, stack + sizeof stack, SIGCHLD, NULL);
}

static void one_fork(fork_fn make) {
  int status;
  pid_t pid = make();
  CHECK(pid >= 0);
  if (pid == 0) child_checks();
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(wrong() == 0);
}

int main(void) {
  struct rng rng = rng_from(test_begin(), 0);
  test_watchdog(120);
  struct mesh_api api = mesh_api_find();
  test_needs_library(&api);
  fill();
  thin(&rng);
  api.compact();
  CHECK(wrong() == 0);
  long before = pss_kb();
  fork_fn make[] = {fork, by_syscall, by_clone, _Fork};
  for (int i = 0; i < FORKS; i++) {
    one_fork(make[i % 4]);
    api.compact();
  }
  long after = pss_kb();
  printf("PSS %ld kB before, %ld kB after %d forks\n", before, after, FORKS);
  CHECK(after < before + before / 10 + 512);

  /* Pages from before a fork are movable again once the child has gone. */
  static unsigned char *second[OBJECTS];
  for (int i = 0; i < OBJECTS; i++) second[i] = memset(malloc(SIZE), 1, SIZE);
  one_fork(fork);
  uint64_t meshed = mesh_api_stats(&api).meshes;
  for (int i = 0; i < OBJECTS; i++)
    if (rng_below(&rng, KEEP)) free(second[i]);
  api.compact();
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  printf("tier %u: %llu meshes before, %llu after\n", s.tier, (unsigned long long)meshed, (unsigned long long)s.meshes);
  if (s.tier == MESH_UFFD_TIER_FULL) CHECK(s.meshes > meshed);
  CHECK(wrong() == 0);
  puts("passed");
  return 0;
}
