/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library beside other allocators, and where it has to keep still; neighbours.sh runs it. neighbour CASE
 * [LIBRARY]: prints `ours N`, whether malloc is the library's, and fails when something does not work.
 */
#include "test.h"

#include <dirent.h>
#include <link.h>
#include <malloc.h>
#include <sys/auxv.h>
#include <sys/wait.h>

enum { OBJECTS = 20000 };

static void check_aligned(void *p, size_t align, size_t size) {
  CHECK(p && (uintptr_t)p % align == 0 && malloc_usable_size(p) >= size);
  memset(p, 1, size);
  free(p);
}

/* The whole family, in any process. */
static void use_family(void) {
  static unsigned char *p[OBJECTS];
  void *q;
  for (size_t i = 0; i < OBJECTS; i++) {
    size_t n = i % 400 == 399 ? 100000 : 1 + i % 700;
    p[i] = i % 3 == 0 ? calloc(n, 1) : i % 3 == 1 ? malloc(n) : realloc(malloc(n / 2 + 1), n);
    CHECK(p[i] && (i % 3 || (p[i][0] == 0 && p[i][n - 1] == 0)));
    CHECK(malloc_usable_size(p[i]) >= n);
    pattern_fill(p[i], n, i);
  }
  for (size_t i = 0; i < OBJECTS; i++) {
    size_t n = i % 400 == 399 ? 100000 : 1 + i % 700;
    CHECK_PATTERN(p[i], n, i);
    if (i % 5 == 0) CHECK((p[i] = reallocarray(p[i], n, 3)));
    CHECK_PATTERN(p[i], n, i);
    free(p[i]);
  }
  check_aligned(memalign(64, 100), 64, 100);
  check_aligned(aligned_alloc(4096, 8192), 4096, 8192);
  check_aligned(valloc(10), 4096, 10);
  check_aligned(pvalloc(10), 4096, 4096);
  CHECK(posix_memalign(&q, 256, 1000) == 0);
  check_aligned(q, 256, 1000);
  free(NULL);
  CHECK(!malloc_usable_size(NULL));
  free(strdup("by libc"));
  malloc_trim(0);
}

static bool is_ours(const void *p) {
  bool (*is)(const void *) = NULL;
  return mesh_api_symbol("mesh_uffd_is_ours", &is) && is(p);
}

static void say_whose(void) {
  void *p = opaque(malloc(100));
  printf("ours %d\n", is_ours(p));
  free(p);
}

static void run_plain(const char *unused) {
  (void)unused;
  use_family();
  say_whose();
  pid_t child = fork();
  if (child == 0) {
    use_family();
    _exit(0);
  }
  int status;
  CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static unsigned count_threads(void) {
  unsigned n = 0;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *e; tasks && (e = readdir(tasks));) n += e->d_name[0] != '.';
  if (tasks) closedir(tasks);
  return n;
}

/* A second copy, in a namespace of its own with a libc of its own. */
static void run_dlmopen(const char *library) {
  unsigned before = count_threads();
  void *copy = dlmopen(LM_ID_NEWLM, library, RTLD_NOW | RTLD_LOCAL);
  CHECKF(copy, "%s", dlerror());
  void *(*take)(size_t) = NULL;
  void (*give)(void *) = NULL;
  size_t (*compact)(void) = NULL;
  void *address;
  CHECK((address = dlsym(copy, "malloc")));
  memcpy(&take, &address, sizeof take);
  CHECK((address = dlsym(copy, "free")));
  memcpy(&give, &address, sizeof give);
  CHECK((address = dlsym(copy, "mesh_uffd_compact")));
  memcpy(&compact, &address, sizeof compact);
  static unsigned char *p[OBJECTS * 3];
  for (size_t i = 0; i < OBJECTS * 3; i++) {
    CHECK((p[i] = take(300)) != NULL && !is_ours(p[i]));
    pattern_fill(p[i], 300, i);
  }
  for (size_t i = 0; i < OBJECTS * 3; i++)
    if (i % 20) give(p[i]);
  compact();
  for (size_t i = 0; i < OBJECTS * 3; i += 20) {
    CHECK_PATTERN(p[i], 300, i);
    give(p[i]);
  }
  CHECKF(count_threads() == before, "it started a thread, of which this namespace's libc knows nothing");
  use_family();
  say_whose();
}

/* Not preloaded: what libc has allocated reaches the library's free and realloc. */
static void run_late(const char *library) {
  char *before[3] = {strdup("one"), strdup("two"), NULL};
  before[2] = malloc(200000);
  memset(before[2], 5, 200000);
  void *late = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  CHECKF(late, "%s", dlerror());
  void (*give)(void *) = NULL;
  void *(*change)(void *, size_t) = NULL, *(*take)(size_t) = NULL;
  size_t (*usable)(void *) = NULL;
  void *address;
  CHECK((address = dlsym(late, "free")));
  memcpy(&give, &address, sizeof give);
  CHECK((address = dlsym(late, "realloc")));
  memcpy(&change, &address, sizeof change);
  CHECK((address = dlsym(late, "malloc")));
  memcpy(&take, &address, sizeof take);
  CHECK((address = dlsym(late, "malloc_usable_size")));
  memcpy(&usable, &address, sizeof usable);
  CHECK(usable(before[2]) >= 200000);
  give(before[0]);
  before[1] = change(before[1], 100);
  CHECK(strcmp(before[1], "two") == 0);
  give(before[1]);
  before[2] = change(before[2], 300000);
  CHECK(before[2][199999] == 5);
  give(before[2]);
  char *p = take(50), *q = strdup("libc's");
  CHECK(usable(p) >= 50 && usable(q) >= 7);
  give(p);
  give(q);
  use_family();
  say_whose();
}

int main(int argc, char **argv) {
  const char *which = argc > 1 ? argv[1] : "";
  setvbuf(stdout, NULL, _IOLBF, 512);
  if (strcmp(which, "plain") == 0)
    run_plain(NULL);
  else if (strcmp(which, "secure") == 0)
    printf("secure %lu\n", getauxval(AT_SECURE)), run_plain(NULL);
  else if (strcmp(which, "dlmopen") == 0 && argc > 2)
    run_dlmopen(argv[2]);
  else if (strcmp(which, "late") == 0 && argc > 2)
    run_late(argv[2]);
  else
    return 2;
  return 0;
}
