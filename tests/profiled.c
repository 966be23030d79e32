/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Allocates from known places and says on standard output what a heap profile must find: a line "function NAME
 * ADDRESS" for each function, and "truth NAME SIZE COUNT LIVE" for each of them that allocates. tests/profile.sh runs
 * it.
 */
#include "test.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

/* Not a tail call, and nothing of it is left out. */
#define SITE(name)                                                                                                     \
  static NOINLINE void *name(size_t size) {                                                                            \
    void *volatile p = malloc(size);                                                                                   \
    CHECK(p);                                                                                                          \
    memset(p, 0x5a, size);                                                                                             \
    return p;                                                                                                          \
  }
SITE(small)
SITE(medium)
SITE(big)
SITE(huge)
static NOINLINE void *cleared(size_t size) {
  void *volatile p = calloc(1, size);
  CHECK(p);
  return p;
}
static NOINLINE void *apart(size_t size) {
  void *volatile p = aligned_alloc(64, size);
  CHECK(p);
  return p;
}

static struct mesh_api api;

static const struct site {
  const char *name;
  void *(*make)(size_t);
  size_t size;
  unsigned count, keep; /* each keep-th stays */
} sites[] = {
    {"small", small, 24, 200000, 3}, {"medium", medium, 300, 40000, 2},   {"big", big, 5000, 4000, 4},
    {"huge", huge, 100000, 300, 3},  {"cleared", cleared, 700, 20000, 5}, {"apart", apart, 448, 20000, 2},
};
enum { SITES = sizeof sites / sizeof *sites, MAX_THREADS = 4 };

static void say(const char *name, size_t size, unsigned long count, unsigned long live) {
  printf("truth %s %zu %lu %lu\n", name, size, count, live);
}

/* ---- what is allocated, and by whom ------------------------------------------------------------------------------ */

struct job {
  uint64_t seed;
  void **made[SITES];
};

static NOINLINE void *allocate_all(void *data) {
  struct job *job = data;
  unsigned left[SITES], all = 0;
  for (unsigned s = 0; s < SITES; s++) all += left[s] = sites[s].count;
  while (all) {
    job->seed = mix64(job->seed + 1);
    unsigned s = (unsigned)(job->seed % SITES);
    while (!left[s]) s = (s + 1) % SITES;
    for (unsigned n = 0; n < 16 && left[s]; n++, all--) {
      left[s]--;
      job->made[s][left[s]] = sites[s].make(sites[s].size);
    }
  }
  return NULL;
}

/* Threads allocate, the main thread frees. */
static void run_sites(uint64_t seed, unsigned threads) {
  static struct job jobs[MAX_THREADS];
  pthread_t thread[MAX_THREADS];
  for (unsigned t = 0; t < threads; t++) {
    jobs[t].seed = mix64(seed + t);
    for (unsigned s = 0; s < SITES; s++) {
      size_t bytes = (sites[s].count + 1) * sizeof(void *);
      jobs[t].made[s] = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      CHECK(jobs[t].made[s] != MAP_FAILED);
    }
    CHECK(pthread_create(&thread[t], NULL, allocate_all, &jobs[t]) == 0);
  }
  unsigned long live[SITES] = {0};
  for (unsigned t = 0; t < threads; t++) {
    CHECK(pthread_join(thread[t], NULL) == 0);
    for (unsigned s = 0; s < SITES; s++)
      for (unsigned i = 0; i < sites[s].count; i++)
        if (i % sites[s].keep)
          free(jobs[t].made[s][i]);
        else
          live[s]++;
  }
  for (unsigned s = 0; s < SITES; s++)
    say(sites[s].name, sites[s].size, threads * (unsigned long)sites[s].count, live[s]);
}

/* ---- realloc: large ones in place, moved, and shrunk --------------------------------------------------------------
 */

static NOINLINE void *grown(size_t size) {
  void *volatile p = NULL;
  for (size_t n = size / 8; n <= size; n *= 2) CHECK((p = realloc(p, n)));
  return p;
}

static void run_realloc(void) {
  enum { TIMES = 40, SIZE = 1 << 22 };
  void *kept[TIMES];
  for (int i = 0; i < TIMES; i++) kept[i] = grown(SIZE);
  for (int i = 0; i < TIMES; i += 2) free(kept[i]);
  say("grown", SIZE, 0, TIMES / 2);
}

/* ---- what holds pages -------------------------------------------------------------------------------------------- */

static int by_address(const void *a, const void *b) {
  const char *const *x = a, *const *y = b;
  return (*x > *y) - (*x < *y);
}

/* Bytes of the pages that objects lie on, none across two. */
static double pages_of(char **p, size_t n) {
  size_t pages = 0;
  qsort(p, n, sizeof *p, by_address);
  for (size_t i = 0; i < n; i++) pages += i == 0 || (uintptr_t)p[i] >> 12 != (uintptr_t)p[i - 1] >> 12;
  return (double)pages * 4096;
}

static void write_profile(const char *directory, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s.pb.gz", directory, name);
  int err = api.profile_write(path);
  CHECKF(err == 0, "%s: %s", path, strerror(err));
}

static void run_held(uint64_t seed, const char *directory) {
  enum { N = 200000, KEEP = 40 };
  static char *p[N], *kept[N];
  size_t n = 0;
  api.pause(); /* on a busy machine the mesher would come before the first profile */
  for (int i = 0; i < N; i++) p[i] = small(64);
  for (int i = 0; i < N; i++) {
    seed = mix64(seed + 1);
    if (seed % KEEP)
      free(p[i]);
    else
      kept[n++] = p[i];
  }
  for (int i = 0; i < 20000; i++) medium(512); /* dense: what it uses is what it holds */
  printf("pages %.0f\n", pages_of(kept, n));
  write_profile(directory, "before");
  api.resume();
  mesh_api_compact(&api);
  struct mesh_uffd_stats stats = mesh_api_stats(&api);
  printf("packed %llu %llu\n", (unsigned long long)stats.meshed_pages, (unsigned long long)stats.packed_bytes);
  api.pause();
  write_profile(directory, "meshed");
  for (size_t i = 0; i < n; i++) *(volatile char *)kept[i] = 1; /* takes private copies */
  write_profile(directory, "written");
  api.resume();
  say("small", 64, N, n);
  say("medium", 512, 20000, 20000);
}

/* ---- many stacks ------------------------------------------------------------------------------------------------- */

static NOINLINE void left(unsigned path, unsigned depth);
static NOINLINE void right(unsigned path, unsigned depth);

static void next(unsigned path, unsigned depth) {
  if (!depth)
    small(24);
  else if (path & 1)
    left(path >> 1, depth - 1);
  else
    right(path >> 1, depth - 1);
}
static NOINLINE void left(unsigned path, unsigned depth) {
  next(path, depth);
  __asm__ volatile("");
}
static NOINLINE void right(unsigned path, unsigned depth) {
  next(path, depth);
  __asm__ volatile("");
}

static void run_many(void) {
  enum { DEPTH = 15, PATHS = 20000, MORE = 250000 };
  for (unsigned path = 0; path < PATHS; path++) next(path, DEPTH);
  for (int i = 0; i < MORE; i++) medium(32);
  say("small", 24, PATHS, PATHS);
  say("medium", 32, MORE, MORE);
}

/* ---- stacks that are none ---------------------------------------------------------------------------------------- */

static NOINLINE void deep_inside(void) {
  for (int i = 0; i < 1000; i++) small(24);
}

/* On a stack whose end is the end of what can be read: what lies above, by the frames' description, is not there. */
static void run_strange(void) {
#ifdef __x86_64__
  enum { BYTES = 1 << 16, GUARD = 1 << 16 };
  char *stack = mmap(NULL, BYTES + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(stack != MAP_FAILED && mprotect(stack + BYTES, GUARD, PROT_NONE) == 0);
  memset(stack, 0x77, BYTES);
  for (int distance = 0; distance <= 64; distance += 16) {
    register char *top __asm__("r12") = stack + BYTES - distance;
    __asm__ volatile("xchgq %%rsp, %0\n\tcall *%1\n\tmovq %0, %%rsp"
                     : "+r"(top)
                     : "b"(deep_inside)
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
  }
  say("small", 24, 5000, 5000);
#else
  deep_inside();
  say("small", 24, 1000, 1000);
#endif
}

/* The frame of a handler has a description of its own kind. */
static void handler(int signal) {
  (void)signal;
  medium(300);
}

static void run_handler(void) {
  signal(SIGUSR1, handler);
  for (int i = 0; i < 2000; i++) {
    small(24);
    raise(SIGUSR1);
  }
  say("small", 24, 2000, 2000);
  say("medium", 300, 2000, 2000);
}

/* ---- fork, signals, errors --------------------------------------------------------------------------------------- */

static void run_fork(bool quietly) {
  for (int i = 0; i < 3000; i++) small(100);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < 2000; i++) medium(200);
    if (quietly) _exit(0);
    exit(0);
  }
  int status;
  CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
  printf("child %d\n", (int)child);
  say("small", 100, 3000, 3000);
}

static void run_wait(void) {
  for (int i = 0; i < 3000; i++) small(100);
  say("small", 100, 3000, 3000);
  puts("ready");
  fflush(stdout);
  for (;;) pause(); /* for signals */
}

static void run_errors(const char *directory) {
  CHECK(api.profile_write(NULL) == EINVAL);
  if (env_flag("MESH_UFFD_PROFILE")) {
    CHECK(api.profile_write("/nonexistent/file") == ENOENT);
    CHECK(api.profile_write(directory) == EISDIR);
    CHECK(api.profile_write("/dev/full") == ENOSPC);
    CHECK(api.profile_write("/dev/null") == 0);
  } else {
    CHECK(api.profile_write("/dev/null") == ENOTSUP);
  }
}

#define FUNCTION(f) printf("function %s %p\n", #f, (void *)(uintptr_t)f)

int main(int argc, char **argv) {
  uint64_t seed = test_begin();
  api = mesh_api_find();
  test_needs_library(&api);
  CHECK(argc == 3);
  FUNCTION(small);
  FUNCTION(medium);
  FUNCTION(big);
  FUNCTION(huge);
  FUNCTION(cleared);
  FUNCTION(apart);
  FUNCTION(grown);
  FUNCTION(allocate_all);
  FUNCTION(deep_inside);
  FUNCTION(run_sites);
  FUNCTION(run_realloc);
  FUNCTION(run_held);
  FUNCTION(run_many);
  FUNCTION(run_strange);
  FUNCTION(run_handler);
  FUNCTION(run_fork);
  FUNCTION(run_wait);
  FUNCTION(write_profile);
  FUNCTION(handler);
  FUNCTION(left);
  FUNCTION(right);
  FUNCTION(main);
  const char *what = argv[1], *directory = argv[2];
  if (strcmp(what, "sites") == 0) run_sites(seed, 1);
  if (strcmp(what, "threads") == 0) run_sites(seed, MAX_THREADS);
  if (strcmp(what, "realloc") == 0) run_realloc();
  if (strcmp(what, "held") == 0) run_held(seed, directory);
  if (strcmp(what, "many") == 0) run_many();
  if (strcmp(what, "strange") == 0) run_strange();
  if (strcmp(what, "handler") == 0) run_handler();
  if (strcmp(what, "fork") == 0) run_fork(false);
  if (strcmp(what, "fork-quietly") == 0) run_fork(true);
  if (strcmp(what, "wait") == 0) run_wait();
  if (strcmp(what, "errors") == 0) run_errors(directory);
  return 0;
}
