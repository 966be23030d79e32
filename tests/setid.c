/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's threads and those of the program. The priority and the processors that main chose before the engine
 * started are not theirs. Once the program, which has threads of its own, has become another user by setgid and setuid,
 * all threads are that user's, and meshing goes on.
 */
#include "test.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>

enum { OBJECTS = 60000, SIZE = 256, KEEP = 12, WORKERS = 2, NOBODY = 65534, MAX_TASKS = 64 };

static struct mesh_api api;
static unsigned char *object[2][OBJECTS];
static bool stop;

static void build(int k, struct rng *rng) {
  for (size_t i = 0; i < OBJECTS; i++) {
    object[k][i] = malloc(SIZE);
    CHECK(object[k][i]);
    pattern_fill(object[k][i], SIZE, i);
  }
  for (size_t i = 0; i < OBJECTS; i++)
    if (rng_below(rng, KEEP)) {
      free(object[k][i]);
      object[k][i] = NULL;
    }
}

static void verify(void) {
  for (int k = 0; k < 2; k++)
    for (size_t i = 0; i < OBJECTS; i++)
      if (object[k][i]) CHECK_PATTERN(object[k][i], SIZE, i);
}

static void *worker(void *unused) {
  (void)unused;
  while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
    unsigned char *p = malloc(1000);
    CHECK(p);
    pattern_fill(p, 1000, 5);
    sleep_ns(1000000);
    CHECK_PATTERN(p, 1000, 5);
    free(p);
  }
  return NULL;
}

/* ---- tasks ---- */

struct task {
  pid_t tid;
  char name[32];
  unsigned uid[4], gid[4]; /* real, effective, saved, of the file system */
};

static bool task_read(struct task *t) {
  char path[64], line[256];
  int got = 0;
  snprintf(path, sizeof path, "/proc/self/task/%d/status", (int)t->tid);
  FILE *f = fopen(path, "r");
  if (!f) return false;
  while (fgets(line, sizeof line, f)) {
    got += sscanf(line, "Name: %31s", t->name) == 1;
    got += sscanf(line, "Uid: %u %u %u %u", &t->uid[0], &t->uid[1], &t->uid[2], &t->uid[3]) == 4;
    got += sscanf(line, "Gid: %u %u %u %u", &t->gid[0], &t->gid[1], &t->gid[2], &t->gid[3]) == 4;
  }
  fclose(f);
  return got == 3;
}

static size_t tasks_read(struct task tasks[MAX_TASKS]) {
  size_t n = 0;
  struct dirent *e;
  DIR *d = opendir("/proc/self/task");
  CHECK(d);
  while (n < MAX_TASKS && (e = readdir(d))) {
    if (e->d_name[0] == '.') continue;
    tasks[n].tid = (pid_t)strtol(e->d_name, NULL, 10);
    if (task_read(&tasks[n])) n++;
  }
  closedir(d);
  return n;
}

static bool is_ours(const struct task *t) {
  return strncmp(t->name, "mesh-uffd", 9) == 0;
}

/* Workers of io_uring are the kernel's: they run no code of a process, and have the ids of their ring's maker. */
static bool is_kernels(const struct task *t) {
  return strncmp(t->name, "iou-", 4) == 0;
}

static size_t count_ours(void) {
  struct task tasks[MAX_TASKS];
  size_t n = tasks_read(tasks), ours = 0;
  for (size_t i = 0; i < n; i++) ours += is_ours(&tasks[i]);
  return ours;
}

/* A thread names itself when it begins, which may be after the compaction that started it. */
static size_t wait_for_ours(void) {
  size_t wanted = tier_is_full(mesh_api_stats(&api).tier) ? 2 : 1, ours = 0;
  for (int i = 0; i < 200 && (ours = count_ours()) < wanted; i++) sleep_ns(10000000);
  CHECKF(ours == wanted, "%zu threads of the library, must be %zu", ours, wanted);
  return ours;
}

/* ---- priority and processors ---- */

enum { PRIORITY = 10 };

struct main_thread {
  cpu_set_t processors;
  bool pinned, fifo;
};

static void choose(struct main_thread *m) {
  struct sched_param high = {.sched_priority = PRIORITY};
  CHECK(sched_getaffinity(0, sizeof m->processors, &m->processors) == 0);
  int cpu = sched_getcpu();
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET((size_t)(cpu < 0 ? 0 : cpu), &one);
  m->pinned = CPU_COUNT(&m->processors) > 1 && sched_setaffinity(0, sizeof one, &one) == 0;
  m->fifo = sched_setscheduler(0, SCHED_FIFO, &high) == 0;
  if (!m->pinned) puts("skipped part: processors: there is one, or they cannot be chosen");
  if (!m->fifo) printf("skipped part: priority: %s\n", strerror(errno));
}

static void check_not_inherited(const struct main_thread *m) {
  struct task tasks[MAX_TASKS];
  size_t n = tasks_read(tasks);
  for (size_t i = 0; i < n; i++) {
    struct sched_param p;
    cpu_set_t processors;
    if (!is_ours(&tasks[i])) continue;
    int policy = sched_getscheduler(tasks[i].tid) & ~SCHED_RESET_ON_FORK;
    CHECK(sched_getparam(tasks[i].tid, &p) == 0);
    /* Nobody of the program's priority may have to wait for one of a lower; who may not have that has none. */
    bool urgent = policy == SCHED_FIFO && p.sched_priority >= PRIORITY;
    CHECKF(urgent || (policy == SCHED_OTHER && p.sched_priority == 0), "%s has policy %d, priority %d", tasks[i].name,
           policy, p.sched_priority);
    bool answers = strcmp(tasks[i].name, "mesh-uffd-fault") == 0;
    CHECKF(urgent || !answers || !m->fifo, "%s has policy %d", tasks[i].name, policy);
    CHECK(sched_getaffinity(tasks[i].tid, sizeof processors, &processors) == 0);
    CHECKF(CPU_COUNT(&processors) >= CPU_COUNT(&m->processors), "%s has %d processors, the program had %d",
           tasks[i].name, CPU_COUNT(&processors), CPU_COUNT(&m->processors));
  }
  printf("threads of the library: a policy of their own, %d processors or more\n", CPU_COUNT(&m->processors));
}

static void choose_back(const struct main_thread *m) {
  struct sched_param zero = {.sched_priority = 0};
  if (m->pinned) CHECK(sched_setaffinity(0, sizeof m->processors, &m->processors) == 0);
  if (m->fifo) CHECK(sched_setscheduler(0, SCHED_OTHER, &zero) == 0);
}

/* ---- another user ---- */

static void check_ids(unsigned id) {
  struct task tasks[MAX_TASKS];
  size_t n = tasks_read(tasks), checked = 0;
  for (size_t i = 0; i < n; i++) {
    const struct task *t = &tasks[i];
    if (is_kernels(t)) continue;
    for (int k = 0; k < 4; k++)
      CHECKF(t->uid[k] == id && t->gid[k] == id, "%s has uid %u %u %u %u, gid %u %u %u %u", t->name, t->uid[0],
             t->uid[1], t->uid[2], t->uid[3], t->gid[0], t->gid[1], t->gid[2], t->gid[3]);
    checked++;
  }
  CHECKF(checked >= 1 + WORKERS + 1, "only %zu threads", checked);
  printf("%zu threads of user and group %u\n", checked, id);
}

static void become_another(struct rng *rng) {
  pthread_t workers[WORKERS];
  for (size_t t = 0; t < WORKERS; t++) CHECK(pthread_create(&workers[t], NULL, worker, NULL) == 0);
  CHECK(setgid(NOBODY) == 0);
  CHECK(setuid(NOBODY) == 0);
  CHECKF(setuid(0) != 0, "it has become root again");
  check_ids(NOBODY);
  wait_for_ours();
  build(1, rng);
  struct mesh_uffd_stats before = mesh_api_stats(&api);
  mesh_api_compact(&api);
  verify();
  __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
  for (size_t t = 0; t < WORKERS; t++) CHECK(pthread_join(workers[t], NULL) == 0);
  mesh_api_compact(&api); /* one thread now: the lower tiers can, too */
  struct mesh_uffd_stats after = mesh_api_stats(&api);
  verify();
  printf("meshes: %llu as root, %llu after\n", (unsigned long long)before.meshes, (unsigned long long)after.meshes);
  CHECKF(after.tier == before.tier, "tier %u before, %u after", before.tier, after.tier);
  CHECKF(!before.meshes || after.meshes > before.meshes, "nothing is meshed any more");
}

int main(void) {
  struct rng rng = rng_from(test_begin(), 0);
  struct main_thread main_thread;
  test_watchdog(60);
  api = mesh_api_find();
  test_needs_library(&api);
  if (count_ours()) {
    puts("skipped: the engine has started before main, as an option wants it to");
    return TEST_SKIPPED;
  }
  choose(&main_thread);
  build(0, &rng);
  mesh_api_compact(&api);
  verify();
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  printf("tier: %s, %llu meshes\n", tier_name(s.tier), (unsigned long long)s.meshes);
  if (api.present) {
    if (tier_is_full(s.tier)) CHECK(s.meshes > 0);
    wait_for_ours();
    check_not_inherited(&main_thread);
  }
  choose_back(&main_thread);
  if (getuid() != 0)
    puts("skipped part: setuid: this is not root");
  else if (api.present)
    become_another(&rng);
  puts("passed");
  return 0;
}
