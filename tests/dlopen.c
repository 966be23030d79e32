/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Before, beside and after main: allocations in constructors and before any of them; libraries that come and go while
 * threads allocate; the library opened by name in a process that is not preloaded with it. And callocs of fresh memory,
 * which must not make it resident.
 */
#include "test.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>

/* ---- before main ---- */

enum { EARLY = 300 };
struct early {
  unsigned char *p[EARLY];
};
static struct early preinit_blocks, first_blocks, second_blocks;

static size_t early_size(size_t i) {
  return i % 50 == 49 ? 100000 : 1 + i * 7;
}

/* Half of them are freed again, and every third grows. */
static void early_make(struct early *e, uint64_t seed) {
  for (size_t i = 0; i < EARLY; i++) {
    size_t n = early_size(i);
    e->p[i] = i % 3 ? malloc(n) : realloc(malloc(n / 2 + 1), n);
    CHECK(e->p[i]);
    pattern_fill(e->p[i], n, seed + i);
  }
  for (size_t i = 0; i < EARLY; i += 2) {
    CHECK_PATTERN(e->p[i], early_size(i), seed + i);
    free(e->p[i]);
    e->p[i] = NULL;
  }
}

static void early_check(struct early *e, uint64_t seed) {
  for (size_t i = 0; i < EARLY; i++) {
    if (!e->p[i]) continue;
    CHECK_PATTERN(e->p[i], early_size(i), seed + i);
    free(e->p[i]);
  }
}

/* Before the constructors of every library. */
static void preinit(int argc, char **argv, char **envp) {
  (void)argc, (void)argv, (void)envp;
  early_make(&preinit_blocks, 1000);
}
__attribute__((section(".preinit_array"), used)) static void (*preinit_entry)(int, char **, char **) = preinit;

__attribute__((constructor(101))) static void first(void) {
  early_make(&first_blocks, 2000);
}
__attribute__((constructor(65000))) static void second(void) {
  early_make(&second_blocks, 3000);
}

/* After main, and after the destructors of this program that are sooner. */
static unsigned char *late;
__attribute__((destructor(101))) static void last(void) {
  early_make(&first_blocks, 4000);
  early_check(&first_blocks, 4000);
  CHECK_PATTERN(late, 5000, 9);
  free(late);
}

/* ---- calloc ---- */

static size_t resident(void) {
  char text[128];
  unsigned long size, pages;
  int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  text[n > 0 ? n : 0] = 0;
  CHECK(sscanf(text, "%lu %lu", &size, &pages) == 2);
  return pages * (size_t)sysconf(_SC_PAGESIZE);
}

enum { BIG = 64 << 20, SLACK = 2 << 20 }; /* the kernel counts pages roughly */

static unsigned char *big_calloc(const char *which, bool must_be_fresh) {
  size_t before = resident();
  unsigned char *p = opaque(calloc(opaque_size(BIG / 64), 64));
  size_t after = resident();
  CHECK(p);
  printf("calloc of 64 MiB, %s: %zu KiB resident before, %zu after\n", which, before >> 10, after >> 10);
  if (must_be_fresh) CHECKF(after < before + SLACK, "calloc makes %zu bytes resident", after - before);
  return p;
}

static void check_zero(const unsigned char *p) {
  for (size_t i = 0; i < BIG; i += 8) {
    uint64_t word;
    memcpy(&word, p + i, 8);
    CHECKF(word == 0, "calloc has other than zeros at offset %zu", i);
  }
}

static void callocs(const struct mesh_api *api) {
  if (!resident()) {
    puts("skipped part: calloc: there is no /proc/self/statm");
    return;
  }
  unsigned char *p = big_calloc("first", true);
  check_zero(p); /* which may make it resident, or not */
  memset(p, 0x5a, BIG);
  CHECK(resident() >= BIG - SLACK);
  free(p);
  p = big_calloc("of memory that was written", false);
  check_zero(p);
  memset(p, 0xa5, BIG);
  free(p);
  mesh_api_compact(api);
  size_t purged = resident();
  if (api->present) CHECKF(purged < BIG, "%zu KiB resident after a purge", purged >> 10);
  p = big_calloc("after a purge", true);
  check_zero(p);
  free(p);
}

/* ---- dlopen ---- */

enum { THREADS = 4, BLOCKS = 200 };
static bool stop;
static uint64_t seed;

static void *allocate(void *number) {
  struct rng rng = rng_from(seed, (uintptr_t)number);
  struct {
    unsigned char *p;
    size_t n;
    uint64_t stamp;
  } b[BLOCKS];
  memset(b, 0, sizeof b);
  uint64_t *rounds = calloc(1, sizeof *rounds);
  CHECK(rounds);
  for (; !__atomic_load_n(&stop, __ATOMIC_ACQUIRE); ++*rounds) {
    size_t i = rng_below(&rng, BLOCKS);
    if (b[i].p) CHECK_PATTERN(b[i].p, b[i].n, b[i].stamp);
    free(b[i].p);
    b[i].n = rng_size(&rng, 15);
    b[i].stamp = rng_next(&rng);
    b[i].p = malloc(b[i].n);
    CHECK(b[i].p);
    pattern_fill(b[i].p, b[i].n, b[i].stamp);
  }
  for (size_t i = 0; i < BLOCKS; i++) {
    if (b[i].p) CHECK_PATTERN(b[i].p, b[i].n, b[i].stamp);
    free(b[i].p);
  }
  return rounds;
}

static const char *const libraries[] = {"libm.so.6",     "libz.so.1",      "libstdc++.so.6", "libgcc_s.so.1",
                                        "libcrypt.so.1", "libresolv.so.2", "libexpat.so.1",  "libcrypto.so.3"};
enum { LIBRARIES = sizeof libraries / sizeof *libraries };

/* Returns how many of them there are. */
static size_t open_all(bool now) {
  void *handle[LIBRARIES];
  size_t opened = 0;
  for (size_t i = 0; i < LIBRARIES; i++) {
    handle[i] = dlopen(libraries[i], (now ? RTLD_NOW : RTLD_LAZY) | (i % 2 ? RTLD_LOCAL : RTLD_GLOBAL));
    if (!handle[i]) CHECK(dlerror());
    opened += handle[i] != NULL;
  }
  if (handle[0]) {
    double (*square_root)(double);
    void *symbol = dlsym(handle[0], "sqrt");
    CHECK(symbol);
    memcpy(&square_root, &symbol, sizeof symbol);
    CHECK(square_root(16) == 4);
  }
  for (size_t i = LIBRARIES; i-- > 0;)
    if (handle[i]) CHECK(dlclose(handle[i]) == 0);
  return opened;
}

static void come_and_go(const struct mesh_api *api) {
  pthread_t threads[THREADS];
  uint64_t rounds = 0, times = 0, end = now_ns() + (test_is_long() ? 60 : 2) * UINT64_C(1000000000);
  size_t opened = 0;
  for (uintptr_t t = 0; t < THREADS; t++) CHECK(pthread_create(&threads[t], NULL, allocate, (void *)t) == 0);
  for (; now_ns() < end; times++) {
    opened = open_all(times % 2);
    if (times % 8 == 0) mesh_api_compact(api);
  }
  __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
  for (size_t t = 0; t < THREADS; t++) {
    void *result;
    CHECK(pthread_join(threads[t], &result) == 0);
    rounds += *(uint64_t *)result;
    free(result);
  }
  printf("%zu libraries came and went %llu times; %llu allocations beside\n", opened, (unsigned long long)times,
         (unsigned long long)rounds);
  CHECKF(opened, "no library could be opened");
}

/* ---- the library by name, beside another malloc ---- */

static int alone(const char *path) {
  void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  CHECKF(handle, "dlopen: %s", dlerror());
  const char *(*version)(void);
  void *(*its_malloc)(size_t);
  void (*its_free)(void *);
  size_t (*compact)(void);
  void *symbols[] = {dlsym(handle, "mesh_uffd_version"), dlsym(handle, "malloc"), dlsym(handle, "free"),
                     dlsym(handle, "mesh_uffd_compact")};
  for (size_t i = 0; i < 4; i++) CHECK(symbols[i]);
  memcpy(&version, &symbols[0], sizeof version);
  memcpy(&its_malloc, &symbols[1], sizeof its_malloc);
  memcpy(&its_free, &symbols[2], sizeof its_free);
  memcpy(&compact, &symbols[3], sizeof compact);
  CHECK(strcmp(version(), "") != 0);
  unsigned char *theirs = malloc(1000), *its = its_malloc(1000);
  CHECK(theirs && its);
  pattern_fill(theirs, 1000, 1);
  pattern_fill(its, 1000, 2);
  compact();
  CHECK_PATTERN(theirs, 1000, 1);
  CHECK_PATTERN(its, 1000, 2);
  int status;
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    CHECK_PATTERN(its, 1000, 2);
    its_free(its);
    free(theirs);
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid && status == 0);
  its_free(its);
  free(theirs);
  CHECK(dlclose(handle) == 0);
  return 0;
}

static void open_by_name(const struct mesh_api *api) {
  Dl_info info;
  void *address;
  memcpy(&address, &api->version, sizeof address);
  if (!api->present || !dladdr(address, &info) || !strchr(info.dli_fname, '/')) {
    puts("skipped part: the library by name: not running on it");
    return;
  }
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    CHECK(unsetenv("LD_PRELOAD") == 0);
    execl("/proc/self/exe", "dlopen", "alone", info.dli_fname, (char *)NULL);
    FAIL("execl: %s", strerror(errno));
  }
  int status;
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECKF(status == 0, "the library by name: status %#x", (unsigned)status);
}

int main(int argc, char **argv) {
  test_watchdog(test_is_long() ? 300 : 60);
  early_check(&preinit_blocks, 1000);
  early_check(&first_blocks, 2000);
  early_check(&second_blocks, 3000);
  late = malloc(5000);
  CHECK(late);
  pattern_fill(late, 5000, 9);
  if (argc == 3) return alone(argv[2]);
  seed = test_begin();
  struct mesh_api api = mesh_api_find();
  callocs(&api);
  come_and_go(&api);
  open_by_name(&api);
  puts("passed");
  return 0;
}
