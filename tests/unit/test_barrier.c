/* SPDX-License-Identifier: Apache-2.0 */
#include "src/options.h"
#include "src/rng.h"
#include "src/sys.h"
#include "uffd/engine.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * The engine's thread is one of ours, since starting it closes every descriptor that its thread has, and Criterion's
 * are among them: nothing asserts there, but what is wrong is put into `wrong`, for the test to find.
 */

enum { PAGES = MU_MAX_BARRIER_PAGES };

static size_t page;
static char wrong[256];
static _Atomic uint32_t is_wrong;

static __attribute__((format(printf, 1, 2))) void note(const char *format, ...) {
  va_list args;
  if (atomic_exchange(&is_wrong, 1)) return; /* the first is told */
  va_start(args, format);
  vsnprintf(wrong, sizeof wrong, format, args);
  va_end(args);
}

#define EXPECT(condition, format, ...)                                                                                 \
  do {                                                                                                                 \
    if (!(condition)) note("%s: " format, #condition, ##__VA_ARGS__);                                                  \
  } while (0)

static void check_nothing_wrong(void) {
  cr_assert_eq(atomic_load(&is_wrong), 0, "%s", wrong);
}

static void (*body)(void);
static enum mu_tier tier;
static uint64_t refused;

static bool has_barrier(void) {
  return tier == MU_TIER_FULL || tier == MU_TIER_FULL_WP;
}

static void *engine_thread(void *unused) {
  mu_engine_own_descriptors();
  mu_engine_start();
  tier = mu_engine_tier();
  if (has_barrier() || mu_options.best_tier == MU_TIER_NONE) body();
  mu_engine_stop();
  return unused;
}

static void with_engine(enum mu_tier best, void (*run)(void)) {
  pthread_t thread;
  page = (size_t)sysconf(_SC_PAGESIZE);
  mu_options.best_tier = best;
  body = run;
  cr_assert_eq(pthread_create(&thread, NULL, engine_thread, NULL), 0);
  pthread_join(thread, NULL);
  if (!has_barrier() && best != MU_TIER_NONE) cr_skip_test("no userfaultfd for faults in the kernel");
  check_nothing_wrong();
}

#define IN_BOTH_TIERS(name, run)                                                                                       \
  Test(barrier, name) {                                                                                                \
    with_engine(MU_TIER_FULL, run);                                                                                    \
  }                                                                                                                    \
  Test(barrier, name##_write_protected) {                                                                              \
    with_engine(MU_TIER_FULL_WP, run);                                                                                 \
  }

/* Without userfaultfd nothing is closed, and nobody may touch it. */
#define IN_ANY_TIER(name, run)                                                                                         \
  IN_BOTH_TIERS(name, run)                                                                                             \
  Test(barrier, name##_standing_still) {                                                                               \
    with_engine(MU_TIER_NONE, run);                                                                                    \
  }

TestSuite(barrier, .timeout = 60);

/* ---- regions ---- */

static char *make_region(size_t pages) {
  char *at = mmap(NULL, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(at, pages * page, MADV_NOHUGEPAGE);
  return at;
}

static void fill(char *at, uint64_t pages) {
  for (unsigned i = 0; i < PAGES; i++)
    if (pages >> i & 1) memset(at + i * page, (int)i + 1, page);
}

static void expect_filled(const char *at, uint64_t pages) {
  for (unsigned i = 0; i < PAGES; i++)
    for (size_t k = 0; k < page; k += page - 1)
      EXPECT(at[i * page + k] == (pages >> i & 1 ? (char)(i + 1) : 0), "page %u, byte %zu", i, k);
}

static uint64_t residents(const char *at) {
  uint64_t present, movable;
  EXPECT(mu_resident(at, PAGES, &present, &movable) == 0, "pagemap");
  return present;
}

/* Wants all of it. */
static bool close_all(char *at, unsigned unit) {
  return mu_barrier_close(MU_ANONYMOUS, at, PAGES, unit, ~(uint64_t)0, &refused) == 0;
}

static const uint64_t some_pages = UINT64_C(0xf00f3337ff0100fe);

static void tell_residents(void) {
  uint64_t present, movable;
  char *at = make_region(PAGES);
  fill(at, some_pages);
  EXPECT(mu_resident(at, PAGES, &present, &movable) == 0, "pagemap");
  EXPECT(present == some_pages && movable == some_pages, "%zx, %zx", (size_t)present, (size_t)movable);
  EXPECT(mu_resident(at + page, 7, &present, &movable) == 0 && present == (some_pages >> 1 & 0x7f), "seven pages");
}

IN_ANY_TIER(resident_pages_are_told, tell_residents)

/* ---- closed and opened ---- */

static void close_and_open(void) {
  for (unsigned unit = 1; unit <= PAGES; unit *= 2) {
    char *at = make_region(PAGES);
    fill(at, some_pages);
    EXPECT(close_all(at, unit) && !refused, "units of %u", unit);
    EXPECT(mu_barrier_present() == some_pages, "units of %u", unit);
    for (unsigned u = 0; u < PAGES / unit; u += 3) EXPECT(mu_barrier_claim(u), "unit %u of %u", u, unit);
    for (unsigned u = 0; u < PAGES / unit; u += 3) EXPECT(!mu_barrier_claim(u), "unit %u of %u: twice", u, unit);
    mu_barrier_open();
    EXPECT(residents(at) == some_pages, "units of %u: %zx", unit, (size_t)residents(at));
    expect_filled(at, some_pages);
    munmap(at, PAGES * page);
  }
}

IN_ANY_TIER(an_opened_barrier_leaves_all_as_it_was, close_and_open)

static void read_contents(void) {
  char *at = make_region(PAGES);
  fill(at, some_pages);
  EXPECT(close_all(at, 4), "close");
  for (unsigned u = 0; u < PAGES / 4; u++) {
    EXPECT(mu_barrier_claim(u), "unit %u", u);
    const char *contents = mu_barrier_contents(u);
    for (unsigned i = 0; i < 4; i++)
      if (some_pages >> (u * 4 + i) & 1)
        EXPECT(contents[i * page] == (char)(u * 4 + i + 1), "page %u of unit %u", i, u);
  }
  mu_barrier_open();
  expect_filled(at, some_pages);
}

IN_ANY_TIER(a_claimed_unit_can_be_read, read_contents)

static void want_some(void) {
  char *at = make_region(PAGES);
  fill(at, some_pages);
  EXPECT(mu_barrier_close(MU_ANONYMOUS, at, PAGES, 8, 0x00ff00ff00000000, &refused) == 0, "close");
  EXPECT(mu_barrier_present() == (some_pages & 0x00ff00ff00000000), "%zx", (size_t)mu_barrier_present());
  at[page] = 2; /* is not in the way */
  EXPECT(mu_barrier_claim(4) && mu_barrier_claim(6), "units that are wanted");
  mu_barrier_open();
  expect_filled(at, some_pages);
}

IN_ANY_TIER(what_is_not_wanted_stays, want_some)

static void remap(void) {
  struct mu_mesh_file file;
  char *at = make_region(PAGES);
  fill(at, ~(uint64_t)0);
  EXPECT(mu_file_create(&file, 16 * page) == 0 && mu_file_prepare(&file, 0, 16 * page) == 0, "file");
  for (unsigned i = 0; i < 16; i++) memset(file.window + i * page, 100 + (int)i, page);
  EXPECT(close_all(at, 2), "close");
  for (unsigned u = 3; u < 8; u++) EXPECT(mu_barrier_claim(u), "unit %u", u);
  EXPECT(mu_barrier_remap(3, 4, file.fd, 4 * page), "file pages 4 to 11 are pages 6 to 13");
  mu_barrier_open();
  for (unsigned i = 0; i < PAGES; i++)
    EXPECT(at[i * page] == (char)(i >= 6 && i < 14 ? 100 + i - 2 : i + 1), "page %u: %d", i, at[i * page]);
  at[6 * page] = 7;
  EXPECT(file.window[4 * page] == 104, "a store goes to a private copy");
  mu_file_seal(&file);
  EXPECT(at[7 * page] == 105, "the mapping outlives the descriptor");
}

IN_ANY_TIER(claimed_units_are_mapped_onto_the_file, remap)

/* ---- touched ---- */

static char *touched;
static _Atomic uint32_t touches;

/* Page 9 is there, page 12 is not. */
static void *touch(void *unused) {
  touched[9 * page] = 99;
  touched[12 * page + 5] = 98;
  atomic_fetch_add(&touches, 1);
  return unused;
}

static void touch_closed(void) {
  pthread_t thread;
  touched = make_region(PAGES);
  fill(touched, 0x0fff);
  EXPECT(close_all(touched, 4), "close");
  pthread_create(&thread, NULL, touch, NULL);
  pthread_join(thread, NULL); /* ends: the fault thread lets it go on */
  EXPECT(!mu_barrier_claim(2) && !mu_barrier_claim(3), "touched units are not ours to take");
  EXPECT(mu_barrier_claim(0) && mu_barrier_claim(1) && mu_barrier_claim(4), "the others are");
  mu_barrier_open();
  EXPECT(touched[9 * page] == 99 && touched[12 * page + 5] == 98, "stores are lost");
  touched[9 * page] = 10, touched[12 * page + 5] = 0;
  expect_filled(touched, 0x0fff);
  EXPECT(mu_engine_counters.faults >= 2, "%zu faults", (size_t)mu_engine_counters.faults);
}

IN_BOTH_TIERS(a_touched_unit_is_returned, touch_closed)

static void touch_claimed(void) {
  struct mu_mesh_file file;
  pthread_t thread;
  touched = make_region(PAGES);
  fill(touched, 0x0fff);
  EXPECT(mu_file_create(&file, 4 * page) == 0 && mu_file_prepare(&file, 0, 4 * page) == 0, "file");
  EXPECT(close_all(touched, 4), "close");
  EXPECT(mu_barrier_claim(2), "unit 2");
  atomic_store(&touches, 0);
  pthread_create(&thread, NULL, touch, NULL);
  memcpy(file.window, mu_barrier_contents(2), 4 * page);
  _Atomic uint32_t never = 0;
  mu_futex_wait(&never, 0, 20000000);
  EXPECT(atomic_load(&touches) == 0, "a claimed unit was touched");
  EXPECT(mu_barrier_remap(2, 1, file.fd, 0), "unit 2");
  pthread_join(thread, NULL);
  EXPECT(touched[9 * page] == 99 && file.window[page] == 10, "the store came before the mapping");
  mu_barrier_open();
  mu_file_seal(&file);
  EXPECT(touched[9 * page] == 99 && touched[12 * page + 5] == 98, "stores are lost");
  touched[9 * page] = 10, touched[12 * page + 5] = 0;
  expect_filled(touched, 0x0fff);
}

IN_BOTH_TIERS(who_touches_a_claimed_unit_waits, touch_claimed)

/* ---- refused ---- */

/* Pages that a forked child shares cannot be moved: their units are refused and stay as they are. */
static void refuse_shared(void) {
  uint64_t present, movable;
  char *at = make_region(PAGES);
  fill(at, 0xffff);
  pid_t child = fork();
  if (child == 0)
    for (;;) pause();
  fill(at, 0x00ff); /* private again */
  EXPECT(mu_resident(at, PAGES, &present, &movable) == 0 && present == 0xffff && movable == 0x00ff, "%zx, %zx",
         (size_t)present, (size_t)movable);
  EXPECT(close_all(at, 2) && refused == 0xff00, "refused %zx", (size_t)refused);
  for (unsigned u = 0; u < 8; u++) EXPECT(mu_barrier_claim(u) == (u < 4), "unit %u", u);
  mu_barrier_open();
  expect_filled(at, 0xffff);
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
}

Test(barrier, shared_pages_are_refused) {
  with_engine(MU_TIER_FULL, refuse_shared);
}

static _Atomic int refused_call = -1;

static int refuse_call(enum mu_sys call, uint64_t index) {
  (void)index;
  return (int)call == atomic_load(&refused_call) ? ENOMEM : 0;
}

/* Registering it, or asking for its pages. */
static void fail_to_close(void) {
  char *at = make_region(PAGES);
  fill(at, some_pages);
  for (int i = 0; i < 2; i++) {
    atomic_store(&refused_call, i ? MU_SYS_pread64 : MU_SYS_ioctl);
    EXPECT(!close_all(at, 2), "call %d", i);
    atomic_store(&refused_call, -1);
    expect_filled(at, some_pages);
  }
  EXPECT(close_all(at, 2), "once more");
  mu_barrier_open();
  expect_filled(at, some_pages);
}

Test(barrier, what_cannot_be_closed_is_as_it_was) {
  mu_sys_hook = refuse_call;
  with_engine(MU_TIER_FULL, fail_to_close);
}

Test(barrier, what_cannot_be_closed_is_as_it_was_write_protected) {
  mu_sys_hook = refuse_call;
  with_engine(MU_TIER_FULL_WP, fail_to_close);
}

static void fail_to_remap(void) {
  struct mu_mesh_file file;
  char *at = make_region(PAGES);
  fill(at, some_pages);
  EXPECT(mu_file_create(&file, PAGES * page) == 0, "file");
  EXPECT(close_all(at, 4) && mu_barrier_claim(3) && mu_barrier_claim(4), "close");
  atomic_store(&refused_call, MU_SYS_mmap);
  EXPECT(!mu_barrier_remap(3, 2, file.fd, 0), "no mapping");
  atomic_store(&refused_call, -1);
  mu_barrier_open();
  mu_file_seal(&file);
  expect_filled(at, some_pages);
}

Test(barrier, what_cannot_be_mapped_is_as_it_was) {
  mu_sys_hook = refuse_call;
  with_engine(MU_TIER_FULL, fail_to_remap);
}

/* ---- racing writers ---- */

/* Each writer has a word of its own on every page, and knows what must be in it. */

enum { REGIONS = 96, WRITERS = 2, RACE_MS = 400, MOST_MS = 2000 };

static struct {
  char *base;
  struct mu_mesh_file file;
  bool meshed;
} regions[REGIONS];

static _Atomic uint32_t stop, seed_of_writers = 1;
static uint64_t expected[WRITERS][REGIONS * PAGES], stores[WRITERS], meshed_units;

static _Atomic uint64_t *word(unsigned writer, uint32_t i) {
  char *at = regions[i / PAGES].base + i % PAGES * page;
  return (_Atomic uint64_t *)(void *)(at + (i * 64 + writer * 1000) % (page - 8) / 8 * 8);
}

static void check_word(unsigned writer, uint32_t i) {
  uint64_t is = atomic_load_explicit(word(writer, i), memory_order_relaxed);
  EXPECT(is == expected[writer][i], "writer %u, region %u, page %u: %zu, not %zu", writer, i / PAGES, i % PAGES,
         (size_t)is, (size_t)expected[writer][i]);
}

static void *write_at_random(void *number) {
  unsigned writer = (unsigned)(uintptr_t)number;
  uint64_t rng = (atomic_fetch_add(&seed_of_writers, 1)) * 0x9E3779B97F4A7C15u;
  while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
    uint32_t i = mu_rng_below(&rng, REGIONS * PAGES);
    check_word(writer, i);
    if (mu_rng_below(&rng, 4)) continue;
    atomic_store_explicit(word(writer, i), ++expected[writer][i], memory_order_relaxed);
    stores[writer]++;
  }
  return NULL;
}

static void copy_unit(struct mu_mesh_file *file, unsigned unit, unsigned size) {
  for (unsigned i = unit * size; i < (unit + 1) * size; i++)
    if (mu_barrier_present() >> i & 1)
      memcpy(file->window + i * page, (const char *)mu_barrier_contents(unit) + (i - unit * size) * page, page);
}

/* Closes one region; packs none, some or all of its units. */
static void pass(uint32_t r, uint64_t *rng) {
  uint64_t packed = 0, wanted = 0;
  unsigned size = 1u << mu_rng_below(rng, 6), units = PAGES / size;
  bool mesh = mu_rng_below(rng, 8) == 0;
  if (regions[r].meshed) return;
  if (mesh &&
      (mu_file_create(&regions[r].file, PAGES * page) < 0 || mu_file_prepare(&regions[r].file, 0, PAGES * page) < 0)) {
    note("a mesh file");
    return;
  }
  for (unsigned u = 0; u < units; u++)
    if (mu_rng_below(rng, 4)) wanted |= (((uint64_t)1 << size) - 1) << u * size;
  EXPECT(mu_barrier_close(MU_ANONYMOUS, regions[r].base, PAGES, size, wanted, &refused) == 0, "region %u", r);
  if (mu_rng_below(rng, 2)) sched_yield();
  for (unsigned u = 0; u < units; u++) {
    if (!(wanted >> u * size & 1) || mu_rng_below(rng, 6) == 0) continue;
    if (!mu_barrier_claim(u) || !mesh || mu_rng_below(rng, 4) == 0) continue;
    copy_unit(&regions[r].file, u, size);
    packed |= (uint64_t)1 << u;
  }
  for (unsigned u = 0, n; u < units; u += n) {
    for (n = 0; u + n < units && (packed >> (u + n) & 1);) n++;
    if (n) EXPECT(mu_barrier_remap(u, n, regions[r].file.fd, (uint64_t)u * size * page), "unit %u", u);
    meshed_units += n;
    n += !n;
  }
  mu_barrier_open();
  if (mesh) mu_file_seal(&regions[r].file);
  regions[r].meshed = mesh;
}

static void race(void) {
  pthread_t writers[WRITERS];
  uint64_t rng = 77, began = mu_now_ns(), ms = 0;
  for (uint32_t r = 0; r < REGIONS; r++) regions[r].base = make_region(PAGES);
  for (uintptr_t i = 0; i < WRITERS; i++) pthread_create(&writers[i], NULL, write_at_random, (void *)i);
  /* On a busy machine it takes longer until something has happened. */
  for (; ms < RACE_MS || (ms < MOST_MS && meshed_units < 20); ms = (mu_now_ns() - began) / 1000000)
    pass(mu_rng_below(&rng, REGIONS), &rng);
  atomic_store(&stop, 1);
  for (unsigned i = 0; i < WRITERS; i++) pthread_join(writers[i], NULL);
  for (unsigned w = 0; w < WRITERS; w++) {
    EXPECT(stores[w] > 0, "writer %u", w);
    for (uint32_t i = 0; i < REGIONS * PAGES; i++) check_word(w, i);
  }
  EXPECT(meshed_units > 0, "nothing was meshed");
}

IN_BOTH_TIERS(no_store_is_lost, race)

/* ---- reclaim ---- */

static void drop(void) {
  enum { RANGES = 700, ALL = RANGES * 4 };
  static struct mu_range ranges[RANGES];
  char *at = make_region(ALL);
  for (int round = 0; round < 3; round++) {
    size_t n = (size_t[]){RANGES, 1, 5}[round];
    memset(at, 1, ALL * page);
    for (size_t i = 0; i < n; i++) ranges[i] = (struct mu_range){at + (i * 4 + 1) * page, 2 * page};
    mu_drop(ranges, n);
    for (size_t i = 0; i < ALL; i++) {
      char should = i < n * 4 && (i % 4 == 1 || i % 4 == 2) ? 0 : 1;
      EXPECT(at[i * page] == should && at[(i + 1) * page - 1] == should, "round %d, page %zu", round, i);
    }
    mu_reclaim_idle();
  }
}

Test(barrier, dropped_ranges_read_as_zeros) {
  with_engine(MU_TIER_FULL, drop);
}

static int no_vector(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_process_madvise ? EPERM : 0;
}

Test(barrier, dropped_ranges_read_as_zeros_by_ring) {
  mu_sys_hook = no_vector;
  with_engine(MU_TIER_FULL, drop);
  cr_assert_eq(mu_engine_counters.ops_vector, 0);
}

Test(barrier, dropped_ranges_read_as_zeros_one_by_one) {
  mu_sys_hook = no_vector;
  mu_options.ring = 0;
  with_engine(MU_TIER_FULL, drop);
  cr_assert_eq(mu_engine_counters.ops_ring + mu_engine_counters.ops_vector, 0);
}

/* ---- start and stop ---- */

static int no_close_range(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_close_range ? ENOSYS : 0;
}

static int no_userfaultfd(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_userfaultfd || call == MU_SYS_openat ? EPERM : 0;
}

static void *start_refused(void *hook) {
  mu_sys_hook = (mu_sys_hook_fn)(uintptr_t)hook;
  mu_engine_start();
  EXPECT(mu_engine_tier() == MU_TIER_NONE, "tier %d", mu_engine_tier());
  EXPECT(strlen(mu_engine_why()) > 10, "\"%s\"", mu_engine_why());
  mu_engine_stop();
  EXPECT(mu_engine_tier() == MU_TIER_UNKNOWN, "tier %d", mu_engine_tier());
  return NULL;
}

static void refuse_start(mu_sys_hook_fn hook) {
  pthread_t thread;
  pthread_create(&thread, NULL, start_refused, (void *)(uintptr_t)hook);
  pthread_join(thread, NULL);
  check_nothing_wrong();
}

Test(barrier, no_descriptor_table_no_tier) {
  refuse_start(no_close_range);
}

Test(barrier, no_userfaultfd_no_tier) {
  refuse_start(no_userfaultfd);
}

static void engine_again(void) {
  for (int i = 0; i < 3; i++) {
    mu_engine_stop();
    EXPECT(mu_engine_tier() == MU_TIER_UNKNOWN, "stopped");
    mu_engine_start();
    close_and_open();
  }
}

Test(barrier, an_engine_may_stop_and_start) {
  with_engine(MU_TIER_FULL, engine_again);
}
