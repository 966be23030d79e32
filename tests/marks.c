/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the program does to pages of small objects of its own stays so while all around it is meshed: each kind of call
 * is made on pages of a sparse heap, then the heap is compacted again and again. And locks in the heap that the kernel
 * looks after: their pages are never meshed, and nobody who waits for one is lost.
 */
#include "test.h"

#include <linux/futex.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

/* No class of these sizes is used by libc or by the test itself: whoever is on such a page is on it here. */
enum { SIZE = 400, OBJECTS = 60000, PER_PAGE = 8, KEEP_ONE_IN = 40, EVERY = 30, ROUNDS = 3 };

static struct mesh_api api;
static unsigned char *objects[OBJECTS];
static size_t page_bytes;

static int by_address(const void *a, const void *b) {
  uintptr_t x = (uintptr_t)(*(unsigned char *const *)a), y = (uintptr_t)(*(unsigned char *const *)b);
  return x < y ? -1 : x > y;
}

static unsigned char *page_of(const void *p) {
  return (unsigned char *)((uintptr_t)p & ~(page_bytes - 1));
}

/* Sorted, and the ones of one page in KEEP_ONE_IN / PER_PAGE kept. */
static void build(void) {
  for (size_t i = 0; i < OBJECTS; i++) {
    CHECK((objects[i] = malloc(SIZE)));
    pattern_fill(objects[i], SIZE, (uintptr_t)objects[i]);
  }
  qsort(objects, OBJECTS, sizeof *objects, by_address);
  size_t kept = 0;
  for (size_t i = 0; i < OBJECTS; i++)
    if (i % KEEP_ONE_IN == 0)
      objects[kept++] = objects[i];
    else
      free(objects[i]);
  memset(objects + kept, 0, (OBJECTS - kept) * sizeof *objects);
}

static void check_and_free(void) {
  for (size_t i = 0; i < OBJECTS && objects[i]; i++) {
    CHECK_PATTERN(objects[i], SIZE, (uintptr_t)objects[i]);
    free(objects[i]);
    objects[i] = NULL;
  }
}

static void compact(void) {
  for (int i = 0; i < ROUNDS; i++) {
    mesh_api_compact(&api);
    sleep_ns(10000000);
  }
}

/* The page shows a file: it is meshed, and was not stored to since. */
static bool shows_file(const void *p) {
  uint64_t entry = 0;
  (void)*(const volatile unsigned char *)p; /* it is mapped by a touch */
  FILE *f = fopen("/proc/self/pagemap", "re");
  CHECK(f && fseek(f, (long)((uintptr_t)p / page_bytes * sizeof entry), SEEK_SET) == 0);
  CHECK(fread(&entry, sizeof entry, 1, f) == 1);
  fclose(f);
  return entry >> 61 & 1;
}

/* ---- properties of the mapping ----------------------------------------------------------------------------------- */

/* Whether the mapping of p has the flag, as /proc/self/smaps names it. */
static bool has_flag(const void *p, const char *flag) {
  static char line[1024];
  FILE *f = fopen("/proc/self/smaps", "re");
  bool here = false, has = false;
  CHECK(f);
  while (fgets(line, sizeof line, f)) {
    uintptr_t from, to;
    if (sscanf(line, "%lx-%lx ", &from, &to) == 2) here = (uintptr_t)p >= from && (uintptr_t)p < to;
    if (here && strncmp(line, "VmFlags:", 8) == 0) has = strstr(line, flag) != NULL;
  }
  fclose(f);
  return has;
}

static const struct advice {
  const char *name;
  int advice;
  const char *flag;
} advices[] = {{"DONTFORK", MADV_DONTFORK, " dc"},
               {"DONTDUMP", MADV_DONTDUMP, " dd"},
               {"WIPEONFORK", 18, " wf"},
               {"MERGEABLE", MADV_MERGEABLE, " mg"},
               {"RANDOM", MADV_RANDOM, " rr"}};

static int do_advise(void *page, int how) {
  return madvise(page, page_bytes, advices[how].advice);
}
static bool is_advised(void *page, int how) {
  return has_flag(page, advices[how].flag);
}

static int do_protect(void *page, int how) {
  return how ? (int)syscall(SYS_mprotect, page, page_bytes, PROT_READ) : mprotect(page, page_bytes, PROT_READ);
}
static bool is_protected(void *page, int how) {
  (void)how;
  return !has_flag(page, " wr");
}

static int do_bind(void *page, int how) {
  unsigned long node = 1;
  (void)how;
  return (int)syscall(SYS_mbind, page, page_bytes, MPOL_PREFERRED, &node, 8 * sizeof node, 0);
}
static bool is_bound(void *page, int how) {
  int mode = -1;
  (void)how;
  CHECK(syscall(SYS_get_mempolicy, &mode, NULL, 0, page, MPOL_F_ADDR) == 0);
  return mode == MPOL_PREFERRED;
}

static int key = -1;
static int do_key(void *page, int how) {
  (void)how;
  if (key < 0) key = pkey_alloc(0, 0);
  return key < 0 ? -1 : pkey_mprotect(page, page_bytes, PROT_READ | PROT_WRITE, key);
}
static bool has_key(void *page, int how) {
  static char line[1024];
  FILE *f = fopen("/proc/self/smaps", "re");
  bool here = false, has = false;
  (void)how;
  CHECK(f);
  while (fgets(line, sizeof line, f)) {
    uintptr_t from, to;
    int it;
    if (sscanf(line, "%lx-%lx ", &from, &to) == 2) here = (uintptr_t)page >= from && (uintptr_t)page < to;
    if (here && sscanf(line, "ProtectionKey: %d", &it) == 1) has = it == key;
  }
  fclose(f);
  return has;
}

static int do_seal(void *page, int how) {
  (void)how;
  return (int)syscall(SYS_mseal, page, page_bytes, 0);
}
static bool is_sealed(void *page, int how) {
  (void)how;
  return has_flag(page, " sl");
}

/* A userfaultfd of the program's own: whoever comes second gets EBUSY, for the moment of a barrier. */
static int own_uffd = -1;
static int do_register(void *page, int how) {
  struct uffdio_api handshake = {.api = UFFD_API};
  struct uffdio_register r = {.range = {(uintptr_t)page, page_bytes}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  (void)how;
  if (own_uffd < 0) {
    own_uffd = (int)syscall(SYS_userfaultfd, 1);
    if (own_uffd < 0 || ioctl(own_uffd, UFFDIO_API, &handshake) < 0) return -1;
  }
  int result = -1;
  for (int i = 0; i < 1000 && (result = ioctl(own_uffd, UFFDIO_REGISTER, &r)) < 0 && errno == EBUSY; i++)
    sleep_ns(1000000);
  return result;
}
static bool is_registered(void *page, int how) {
  (void)how;
  return has_flag(page, " um");
}

static const struct property {
  const char *name;
  int how;
  int (*make)(void *page, int how);
  bool (*holds)(void *page, int how);
  bool once; /* cannot be undone: the process ends with it */
} properties[] = {
    {"MADV_DONTFORK", 0, do_advise, is_advised, false},
    {"MADV_DONTDUMP", 1, do_advise, is_advised, false},
    {"MADV_WIPEONFORK", 2, do_advise, is_advised, false},
    {"MADV_MERGEABLE", 3, do_advise, is_advised, false},
    {"MADV_RANDOM", 4, do_advise, is_advised, false},
    {"mprotect", 0, do_protect, is_protected, true},
    {"mprotect by syscall", 1, do_protect, is_protected, true},
    {"mbind", 0, do_bind, is_bound, false},
    {"pkey_mprotect", 0, do_key, has_key, false},
    {"mseal", 0, do_seal, is_sealed, true},
    {"userfaultfd", 0, do_register, is_registered, false},
};

/* In a child, so that every case has a heap of its own. late: some of the pages are meshed already. */
static void keeps(const struct property *k, bool late) {
  build();
  if (late) compact();
  size_t made = 0, held = 0, meshed = 0;
  static bool mine[OBJECTS];
  memset(mine, 0, sizeof mine);
  for (size_t i = 0; i < OBJECTS && objects[i]; i += EVERY) {
    if (k->make(page_of(objects[i]), k->how) < 0) {
      if (late && errno == EINVAL && made == 0) continue; /* of a file's mapping this is not to be had */
      printf("skipped part: %s: %s\n", k->name, strerror(errno));
      _exit(0);
    }
    mine[i] = true;
    made++;
  }
  compact();
  for (size_t i = 0; i < OBJECTS && objects[i]; i++) {
    if (mine[i]) held += k->holds(page_of(objects[i]), k->how);
    meshed += !mine[i] && shows_file(objects[i]);
  }
  uint32_t tier = mesh_api_stats(&api).tier;
  CHECKF(held == made, "%s holds for %zu of %zu pages", k->name, held, made);
  CHECKF(meshed > 100, "%s: only %zu other pages were meshed in tier %s", k->name, meshed, tier_name(tier));
  for (size_t i = 0; i < OBJECTS && objects[i]; i++) CHECK_PATTERN(objects[i], SIZE, (uintptr_t)objects[i]);
  if (!k->once) check_and_free();
  printf("ok %s%s: %zu pages, %zu others meshed\n", k->name, late ? ", late" : "", made, meshed);
  fflush(stdout);
  _exit(0);
}

static void in_child(const struct property *k, bool late) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) keeps(k, late);
  int status;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s ended with %#x", k->name, (unsigned)status);
}

/* ---- locks ------------------------------------------------------------------------------------------------------- */

static void make_lock(void *at, size_t kind) {
  pthread_mutexattr_t mutex;
  pthread_condattr_t cond;
  pthread_rwlockattr_t rwlock;
  pthread_barrierattr_t barrier;
  CHECK(!pthread_mutexattr_init(&mutex) && !pthread_condattr_init(&cond) && !pthread_rwlockattr_init(&rwlock) &&
        !pthread_barrierattr_init(&barrier));
  switch (kind % 7) {
  case 0:
    CHECK(!pthread_mutexattr_setprotocol(&mutex, PTHREAD_PRIO_INHERIT) && !pthread_mutex_init(at, &mutex));
    break;
  case 1:
    CHECK(!pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST) && !pthread_mutex_init(at, &mutex));
    break;
  case 2:
    CHECK(!pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED) && !pthread_mutex_init(at, &mutex));
    break;
  case 3:
    CHECK(!pthread_condattr_setpshared(&cond, PTHREAD_PROCESS_SHARED) && !pthread_cond_init(at, &cond));
    break;
  case 4:
    CHECK(!pthread_rwlockattr_setpshared(&rwlock, PTHREAD_PROCESS_SHARED) && !pthread_rwlock_init(at, &rwlock));
    break;
  case 5:
    CHECK(!pthread_barrierattr_setpshared(&barrier, PTHREAD_PROCESS_SHARED) && !pthread_barrier_init(at, &barrier, 2));
    break;
  default:
    CHECK(sem_init(at, 1, 0) == 0);
  }
}

/* Their spans are never meshed, though they are as sparse as the others. */
static void locks_are_left_alone(void) {
  build();
  for (size_t i = 0; i < OBJECTS && objects[i]; i += EVERY) make_lock(objects[i], i / EVERY);
  compact();
  size_t left = 0, meshed = 0;
  for (size_t i = 0; i < OBJECTS && objects[i]; i++) {
    bool file = shows_file(objects[i]);
    bool alone = i % EVERY == 0;
    CHECKF(!alone || !file, "the page of a lock of kind %zu is meshed", i / EVERY % 7);
    left += i % EVERY == 0;
    meshed += file;
  }
  CHECKF(meshed > 100, "only %zu pages were meshed", meshed);
  printf("ok locks: %zu pages left alone, %zu others meshed\n", left, meshed);
  for (size_t i = 0; i < OBJECTS && objects[i]; i++) {
    if (i % EVERY) CHECK_PATTERN(objects[i], SIZE, (uintptr_t)objects[i]);
    free(objects[i]);
    objects[i] = NULL;
  }
}

enum { LOCKS = 40, LOCKERS = 3 };
static pthread_mutex_t *locks[LOCKS];
static uint64_t counted[LOCKS], taken;
static bool stop;

static void *locker(void *seed) {
  struct rng rng = rng_from(7, (uintptr_t)seed);
  while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
    size_t i = rng_below(&rng, LOCKS);
    int r = pthread_mutex_lock(locks[i]);
    CHECKF(r == 0, "pthread_mutex_lock: %s", strerror(r));
    counted[i]++;
    if (rng_below(&rng, 4) == 0) sched_yield(); /* somebody comes to wait */
    r = pthread_mutex_unlock(locks[i]);
    CHECKF(r == 0, "pthread_mutex_unlock: %s", strerror(r));
    __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
  }
  return NULL;
}

/* Fought for while everything around them is meshed. A lost waiter hangs until the watchdog. */
static void locks_are_fought_for(void) {
  pthread_t threads[LOCKERS];
  pthread_mutexattr_t attributes[3];
  for (int i = 0; i < 3; i++) CHECK(!pthread_mutexattr_init(&attributes[i]));
  CHECK(!pthread_mutexattr_setprotocol(&attributes[1], PTHREAD_PRIO_INHERIT));
  CHECK(!pthread_mutexattr_setrobust(&attributes[2], PTHREAD_MUTEX_ROBUST));
  build();
  for (size_t i = 0; i < LOCKS; i++) {
    locks[i] = (pthread_mutex_t *)(void *)objects[i * EVERY];
    CHECK(pthread_mutex_init(locks[i], &attributes[i % 3]) == 0);
  }
  for (size_t i = 0; i < LOCKERS; i++) CHECK(!pthread_create(&threads[i], NULL, locker, (void *)(uintptr_t)i));
  for (uint64_t end = now_ns() + (test_is_long() ? 60 : 2) * UINT64_C(1000000000); now_ns() < end;) {
    mesh_api_compact(&api);
    sleep_ns(1000000);
  }
  __atomic_store_n(&stop, true, __ATOMIC_RELAXED);
  for (size_t i = 0; i < LOCKERS; i++) CHECK(!pthread_join(threads[i], NULL));
  uint64_t sum = 0;
  for (size_t i = 0; i < LOCKS; i++) sum += counted[i];
  CHECK(sum == taken);
  printf("ok locks that are fought for: taken %llu times\n", (unsigned long long)taken);
}

/* Waiters on private and on shared futexes in ordinary objects are there after their pages were remapped. */
enum { WAITERS = 24 };
static uint32_t *words[WAITERS];

static void *waiter(void *which) {
  size_t i = (uintptr_t)which;
  while (!__atomic_load_n(words[i], __ATOMIC_ACQUIRE))
    syscall(SYS_futex, words[i], i % 2 ? FUTEX_WAIT : FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
  return NULL;
}

static void waiters_are_kept(void) {
  pthread_t threads[WAITERS];
  bool meshed[WAITERS];
  size_t counts[2] = {0, 0};
  build();
  for (size_t i = 0; i < WAITERS; i++) {
    words[i] = (uint32_t *)(void *)objects[1 + i * EVERY];
    memset(words[i], 0, SIZE);
    CHECK(!pthread_create(&threads[i], NULL, waiter, (void *)(uintptr_t)i));
  }
  sleep_ns(50000000);
  compact();
  for (size_t i = 0; i < WAITERS; i++) meshed[i] = shows_file(words[i]);
  for (size_t i = 0; i < WAITERS; i++) {
    __atomic_store_n(words[i], 1, __ATOMIC_RELEASE);
    long woken = syscall(SYS_futex, words[i], i % 2 ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    CHECKF(woken == 1, "%ld woken on a %s futex whose page was %smeshed", woken, i % 2 ? "shared" : "private",
           meshed[i] ? "" : "not ");
    CHECK(!pthread_join(threads[i], NULL));
    counts[i % 2] += meshed[i];
  }
  CHECKF(counts[0] && counts[1], "no page with a waiter was meshed");
  printf("ok waiters are kept: pages of %zu private and of %zu shared ones of %d were meshed\n", counts[0], counts[1],
         WAITERS / 2);
}

int main(void) {
  api = mesh_api_find();
  test_begin();
  test_needs_library(&api);
  page_bytes = (size_t)sysconf(_SC_PAGESIZE);
  alarm(test_is_long() ? 600 : 120);
  if (page_bytes != 4096) {
    printf("skipped: pages of %zu bytes\n", page_bytes);
    return TEST_SKIPPED;
  }
  build();
  compact();
  uint32_t tier = mesh_api_stats(&api).tier;
  check_and_free();
  printf("tier: %s\n", tier_name(tier));
  for (size_t i = 0; i < sizeof properties / sizeof *properties; i++) {
    in_child(&properties[i], false);
    in_child(&properties[i], true);
  }
  locks_are_left_alone();
  if (tier_is_full(tier)) {
    waiters_are_kept();
    locks_are_fought_for();
  }
  printf("passed\n");
  return 0;
}
