/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks of a threaded program while its heap is meshed. Objects say which version of themselves they hold; the version
 * each must hold is in a table outside of the heap.
 *
 * Immutable objects are checked by every child. Mutable ones are written by workers all the time, each write under the
 * read side of a lock; half of the forks happen under its write side, and their children check the mutable ones, too.
 * Then each child writes everything, allocates, frees, compacts its own heap, and checks again, while its parent and
 * its brothers do the same to the pages they share.
 */
#include "test.h"

#include <pthread.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum {
  OBJECTS = 4000,
  SPARSE = 7, /* so many are allocated for each that is kept */
  WORKERS = 3,
  CHILDREN = 3, /* alive at a time */
  CHILD_SECONDS = 60,
};

struct object {
  unsigned char *p;
  uint64_t version; /* of the content of p */
  uint32_t size;
  bool immutable;
};

static struct mesh_api api;
static struct object *objects; /* mapped: a child has its own, as of the fork */
static pthread_rwlock_t lock;
static uint64_t test_seed;
static bool stop;
static uint64_t writes;
extern char **environ;

static void *map(size_t size) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

static uint64_t content(size_t i, uint64_t version) {
  return mix64(i * UINT64_C(0x10001) + version * 7 + 1);
}

static void object_check(size_t i, const char *who) {
  const struct object *o = &objects[i];
  size_t good = pattern_check(o->p, o->size, content(i, o->version));
  if (good == o->size) return;
  FAIL("%s: %s object %zu at %p of %u bytes, version %llu, is wrong from offset %zu", who,
       o->immutable ? "immutable" : "mutable", i, (void *)o->p, o->size, (unsigned long long)o->version, good);
}

static void object_write(size_t i, uint64_t version) {
  pattern_fill(objects[i].p, objects[i].size, content(i, version));
  objects[i].version = version;
}

static void check_all(bool mutable_too, const char *who) {
  for (size_t i = 0; i < OBJECTS; i++)
    if (objects[i].immutable || mutable_too) object_check(i, who);
}

static uint32_t random_size(struct rng *rng) {
  return (uint32_t)64 << rng_below(rng, 5);
}

/* Gives new memory, in new sparse spans, to one of so many objects. Nobody else may be at them. */
static void renew(struct rng *rng, size_t one_of) {
  size_t n = OBJECTS / one_of * SPARSE;
  void **p = map(n * sizeof *p);
  uint32_t *size = map(n * sizeof *size);
  for (size_t i = 0; i < n; i++) {
    size[i] = random_size(rng);
    p[i] = malloc(size[i]);
    CHECK(p[i]);
    memset(p[i], 0x22, size[i]);
  }
  for (size_t i = 0; i < n; i++) {
    if (rng_below(rng, SPARSE)) {
      free(p[i]);
      continue;
    }
    size_t at = rng_below(rng, OBJECTS);
    struct object *o = &objects[at];
    if (o->p) object_check(at, "renew");
    free(o->p);
    o->p = p[i];
    o->size = size[i];
    object_write(at, o->version + 1);
  }
  CHECK(munmap(p, n * sizeof *p) == 0);
  CHECK(munmap(size, n * sizeof *size) == 0);
}

static void churn(struct rng *rng, size_t n) {
  void *p[64] = {NULL};
  size_t sizes[64] = {0};
  for (size_t i = 0; i < n; i++) {
    size_t at = rng_below(rng, 64);
    if (p[at]) {
      CHECK_PATTERN(p[at], sizes[at], at);
      free(p[at]);
      p[at] = NULL;
      continue;
    }
    sizes[at] = rng_below(rng, 300) ? rng_size(rng, 12) : 150000 + rng_below(rng, 100000);
    p[at] = malloc(sizes[at]);
    CHECK(p[at]);
    pattern_fill(p[at], sizes[at], at);
  }
  for (size_t i = 0; i < 64; i++) {
    if (p[i]) CHECK_PATTERN(p[i], sizes[i], i);
    free(p[i]);
  }
}

static void *worker(void *argument) {
  size_t self = (uintptr_t)argument;
  struct rng rng = rng_from(test_seed, self);
  uint64_t mine = 0;
  while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
    CHECK(pthread_rwlock_rdlock(&lock) == 0);
    for (int n = 0; n < 20; n++) {
      /* Objects belong to one worker each. */
      size_t i = rng_below(&rng, OBJECTS / WORKERS) * WORKERS + self;
      object_check(i, "worker");
      if (objects[i].immutable) continue;
      object_write(i, objects[i].version + 1);
      mine++;
    }
    CHECK(pthread_rwlock_unlock(&lock) == 0);
    churn(&rng, 30); /* outside of the lock, so that forks meet the allocator at work */
  }
  __atomic_fetch_add(&writes, mine, __ATOMIC_RELAXED);
  return NULL;
}

static void *compactor(void *argument) {
  (void)argument;
  while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
    mesh_api_compact(&api);
    if (!api.present) sleep_ns(1000000);
  }
  return NULL;
}

static void *child_thread(void *argument) {
  struct rng rng = rng_from(test_seed, (uintptr_t)argument);
  churn(&rng, 500);
  return NULL;
}

static void reap(pid_t pid, const char *what) {
  int status;
  pid_t result;
  do result = waitpid(pid, &status, 0);
  while (result < 0 && errno == EINTR);
  CHECK(result == pid);
  CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s %d: status %#x%s", what, (int)pid, (unsigned)status,
         WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM ? " (hangs)" : "");
}

static void child(uint64_t stream, bool mutable_too, int depth) {
  signal(SIGALRM, SIG_DFL);
  alarm(CHILD_SECONDS * test_slow());
  struct rng rng = rng_from(test_seed, stream);
  const char *who = depth ? "grandchild" : "child";
  if (rng_below(&rng, 2)) sleep_ns(rng_below(&rng, 5000000)); /* let the parent go on first */
  if (rng_below(&rng, 4) == 0) mesh_api_compact(&api);        /* before anything was touched */
  check_all(mutable_too, who);
  for (size_t i = 0; i < OBJECTS; i++) object_write(i, objects[i].version + 1000000 + (uint64_t)depth);
  churn(&rng, 600);
  mesh_api_compact(&api);
  check_all(true, "child that compacted");
  if (rng_below(&rng, 3) == 0) {
    renew(&rng, 4);
    mesh_api_compact(&api);
    check_all(true, "child that compacted what it made");
  }
  if (rng_below(&rng, 4) == 0) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, child_thread, (void *)(uintptr_t)stream) == 0);
    mesh_api_compact(&api);
    CHECK(pthread_join(thread, NULL) == 0);
  }
  if (depth < 2 && rng_below(&rng, 4) == 0) {
    pid_t pid = fork();
    CHECKF(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
      child(stream * 31 + 7, true, depth + 1);
      _exit(0);
    }
    for (size_t i = 0; i < OBJECTS; i++) object_write(i, objects[i].version + 5);
    mesh_api_compact(&api);
    check_all(true, "child with a child");
    reap(pid, "grandchild");
  }
  for (size_t i = 0; i < OBJECTS; i += 2) free(objects[i].p);
  mesh_api_compact(&api);
  for (size_t i = 1; i < OBJECTS; i += 2) object_check(i, "child that freed");
}

/* The other ways to a new process. */
static void start_program(size_t how) {
  char name[] = "/bin/true";
  char *arguments[] = {name, NULL};
  pid_t pid;
  switch (how % 5) {
  case 0:
    pid = fork();
    CHECKF(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
      execv(name, arguments);
      _exit(127);
    }
    reap(pid, "fork and exec");
    break;
  case 1: {
    int error = posix_spawn(&pid, name, NULL, NULL, arguments, environ);
    CHECKF(error == 0, "posix_spawn: %s", strerror(error));
    reap(pid, "posix_spawn");
    break;
  }
  case 2:
    pid = vfork();
    if (pid == 0) {
      execv(name, arguments);
      _exit(127);
    }
    CHECKF(pid > 0, "vfork: %s", strerror(errno));
    reap(pid, "vfork and exec");
    break;
  case 3: {
    int status = system("true");
    CHECKF(status == 0, "system: status %#x", (unsigned)status);
    break;
  }
  default: {
    FILE *file = popen("echo hello; echo world", "r");
    CHECK(file);
    char text[64] = "";
    size_t n = fread(text, 1, sizeof text - 1, file);
    text[n] = 0;
    CHECKF(strcmp(text, "hello\nworld\n") == 0, "popen gave: %s", text);
    CHECK(pclose(file) == 0);
    break;
  }
  }
}

int main(void) {
  test_seed = test_begin();
  test_watchdog(test_is_long() ? 1200 : 150);
  api = mesh_api_find();
  test_needs_library(&api);
#ifndef __GLIBC__
  unsetenv("LD_PRELOAD"); /* the programs started here have glibc, perhaps, and the library then not */
#endif
  size_t forks = test_is_long() ? 1500 : 60;
  struct rng rng = rng_from(test_seed, 500);
  objects = map(OBJECTS * sizeof *objects);
  for (size_t i = 0; i < OBJECTS; i++) {
    objects[i].size = 64;
    objects[i].p = malloc(64);
    CHECK(objects[i].p);
    object_write(i, 1);
    objects[i].immutable = i % 2;
  }
  renew(&rng, 1);
  renew(&rng, 1);
  size_t given_back = mesh_api_compact(&api);
  struct mesh_uffd_stats stats = mesh_api_stats(&api);
  if (api.present) {
    printf("tier: %s\n", tier_name(stats.tier));
    test_expect_tier(stats.tier);
  }
  printf("first compaction gave back %zu bytes\n", given_back);

  /* Or the workers, who read-lock it again and again, would keep the forking thread out for ever. */
  pthread_rwlockattr_t attributes;
  CHECK(pthread_rwlockattr_init(&attributes) == 0);
#ifdef __GLIBC__
  CHECK(pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP) == 0);
#endif
  CHECK(pthread_rwlock_init(&lock, &attributes) == 0);
  CHECK(pthread_rwlockattr_destroy(&attributes) == 0);
  pthread_t workers[WORKERS], compactor_thread;
  for (size_t t = 0; t < WORKERS; t++) CHECK(pthread_create(&workers[t], NULL, worker, (void *)(uintptr_t)t) == 0);
  CHECK(pthread_create(&compactor_thread, NULL, compactor, NULL) == 0);

  pid_t children[CHILDREN];
  size_t alive = 0;
  uint64_t start = now_ns();
  for (size_t n = 0; n < forks; n++) {
    bool locked = n % 2;
    if (n % 5 == 4) {
      CHECK(pthread_rwlock_wrlock(&lock) == 0);
      renew(&rng, 2);
      CHECK(pthread_rwlock_unlock(&lock) == 0);
    }
    sleep_ns(rng_below(&rng, 3000000)); /* any moment of a pass */
    if (locked) CHECK(pthread_rwlock_wrlock(&lock) == 0);
    pid_t pid = fork();
    CHECKF(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
      child(1000 + n, locked, 0);
      _exit(0);
    }
    if (!locked) CHECK(pthread_rwlock_wrlock(&lock) == 0);
    /* While the child looks at the same pages. */
    check_all(true, "parent");
    for (size_t i = 0; i < OBJECTS; i++)
      if (!objects[i].immutable || n % 8 == 0) object_write(i, objects[i].version + 1);
    check_all(true, "parent that wrote");
    CHECK(pthread_rwlock_unlock(&lock) == 0);
    children[alive++] = pid;
    if (alive == CHILDREN) {
      reap(children[0], "child");
      memmove(children, children + 1, --alive * sizeof *children);
    }
    if (n % 2 == 0) start_program(n / 2);
  }
  while (alive) reap(children[--alive], "child");
  __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
  for (size_t t = 0; t < WORKERS; t++) CHECK(pthread_join(workers[t], NULL) == 0);
  CHECK(pthread_join(compactor_thread, NULL) == 0);
  mesh_api_compact(&api);
  check_all(true, "the end");
  printf("%.1f s, %zu forks, %llu writes by workers\n", (double)(now_ns() - start) / 1e9, forks,
         (unsigned long long)writes);
  stats = mesh_api_stats(&api);
  if (api.present) {
    print_stats(&stats);
    test_expect_tier(stats.tier);
    if (tier_is_full(stats.tier)) CHECKF(stats.meshes > 0 && stats.passes > 0, "nothing was meshed");
  }
  for (size_t i = 0; i < OBJECTS; i++) free(objects[i].p);
  printf("passed\n");
  return 0;
}
