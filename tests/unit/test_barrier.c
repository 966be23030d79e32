/* SPDX-License-Identifier: Apache-2.0 */
#include "src/options.h"
#include "src/rng.h"
#include "src/sys.h"
#include "uffd/engine.h"
#include "uffd/internal.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
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
static bool moves_only;
static enum mu_tier tier;
static uint64_t refused;
static bool can_look;

static bool has_barrier(void) {
  return tier == MU_TIER_FULL || tier == MU_TIER_FULL_WP;
}

static void *engine_thread(void *unused) {
  mu_engine_own_descriptors();
  mu_engine_start();
  tier = mu_engine_tier();
  uint64_t present, movable;
  can_look = mu_resident((void *)mu_round_down((uintptr_t)&tier, page), 1, &present, &movable) == 0;
  bool fits = moves_only ? tier == MU_TIER_FULL : has_barrier() || mu_options.best_tier == MU_TIER_NONE;
  if (can_look && fits) body();
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
  if (!can_look) cr_skip_test("nobody tells what is resident");
  if (!has_barrier() && best != MU_TIER_NONE) cr_skip_test("no userfaultfd for faults in the kernel");
  check_nothing_wrong();
}

/* What is about moving pages, where the kernel does. */
static void with_moves(void (*run)(void)) {
  moves_only = true;
  with_engine(MU_TIER_FULL, run);
  if (tier != MU_TIER_FULL) cr_skip_test("the kernel moves no pages");
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

/* As mlockall does, at any time. */
static _Atomic bool filled_enough;

static void *fill_scratch(void *unused) {
  while (!atomic_load(&filled_enough)) madvise(mu_engine.scratch, PAGES * page, MU_MADV_POPULATE_WRITE);
  return unused;
}

static void scratch_is_filled(void) {
  enum { ROUNDS = 300 };
  pthread_t filler;
  unsigned closed = 0;
  if (tier != MU_TIER_FULL) return;
  EXPECT(pthread_create(&filler, NULL, fill_scratch, NULL) == 0, "thread");
  for (int i = 0; i < ROUNDS && !atomic_load(&is_wrong); i++) {
    char *at = make_region(PAGES);
    fill(at, some_pages);
    if (close_all(at, 4)) {
      closed++;
      for (unsigned u = 0; u < PAGES / 4; u++) {
        const char *contents = mu_barrier_claim(u) ? mu_barrier_contents(u) : NULL;
        for (unsigned k = 0; contents && k < 4; k++)
          if (mu_barrier_present() >> (u * 4 + k) & 1)
            EXPECT(contents[k * page] == (char)(u * 4 + k + 1), "round %d, page %u of unit %u", i, k, u);
      }
      mu_barrier_open();
    }
    expect_filled(at, some_pages);
    munmap(at, PAGES * page);
  }
  atomic_store(&filled_enough, true);
  pthread_join(filler, NULL);
  EXPECT(closed > 0, "nothing was closed");
}

Test(barrier, what_fills_scratch_is_not_taken_for_what_was_moved) {
  with_moves(scratch_is_filled);
}

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
  with_moves(refuse_shared);
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
    atomic_store(&refused_call, i ? MU_SYS_pread64 : MU_SYS_UFFDIO_REGISTER);
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

/* ---- a run that is meshed already ---- */

/* A region that shows a mesh file: page i of it is page i of the file, whose pages of `holes` were never made. */
static char *make_meshed(struct mu_mesh_file *file, uint64_t holes) {
  EXPECT(mu_file_create(file, PAGES * page) == 0, "file");
  for (unsigned i = 0; i < PAGES; i++) {
    if (holes >> i & 1) continue;
    EXPECT(mu_file_prepare(file, i * page, page) == 0, "page %u", i);
    memset(file->window + i * page, (int)i + 1, page);
  }
  return mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file->fd, 0);
}

static int close_meshed(char *at, unsigned unit) {
  return mu_barrier_close(MU_MESH_FILE, at, PAGES, unit, ~(uint64_t)0, &refused);
}

static void read_all(const char *at) {
  for (unsigned i = 0; i < PAGES; i++) (void)*(const volatile char *)(at + i * page);
}

/* Some pages of the file are holes; some of the mapping was never touched, some was read. */
static void close_meshed_and_open(void) {
  for (int touch_first = 0; touch_first < 2; touch_first++)
    for (unsigned unit = 1; unit <= PAGES; unit *= 2) {
      struct mu_mesh_file file;
      char *at = make_meshed(&file, ~some_pages);
      if (touch_first) read_all(at);
      EXPECT(close_meshed(at, unit) == 0 && !refused, "units of %u: %zx", unit, (size_t)refused);
      for (unsigned u = 0; u < PAGES / unit; u += 3) EXPECT(mu_barrier_claim(u), "unit %u of %u", u, unit);
      expect_filled(mu_barrier_contents(0), some_pages); /* whoever reads does not wait */
      mu_barrier_open();
      expect_filled(at, some_pages);
      fill(at, ~(uint64_t)0); /* nobody waits any more */
      EXPECT(file.window[page] == 2, "a store goes to a private copy");
      mu_file_seal(&file);
      munmap(at, PAGES * page);
    }
}

IN_ANY_TIER(a_meshed_run_is_closed_and_opened, close_meshed_and_open)

static void refuse_copies(void) {
  struct mu_mesh_file file;
  char *at = make_meshed(&file, 0);
  at[5 * page] = 6; /* the same byte: a copy all the same */
  memset(at + 12 * page, 13, page);
  EXPECT(close_meshed(at, 2) == 0, "close");
  EXPECT(refused == ((1 << 5) | (1 << 12)), "refused %zx", (size_t)refused);
  for (unsigned u = 0; u < PAGES / 2; u++) EXPECT(mu_barrier_claim(u) == (u != 2 && u != 6), "unit %u", u);
  mu_barrier_open();
  expect_filled(at, ~(uint64_t)0);
  EXPECT(mu_barrier_close(MU_MESH_FILE, at, PAGES, 2, ~(uint64_t)(3 << 4), &refused) == 0, "close");
  EXPECT(refused == 1 << 12, "what is not wanted is not refused: %zx", (size_t)refused);
  mu_barrier_open();
  mu_file_seal(&file);
  expect_filled(at, ~(uint64_t)0);
}

IN_ANY_TIER(private_copies_are_refused, refuse_copies)

static char *meshed;

/* Page 9 is there, page 12 is a hole of the file that nobody has touched: both stores wait for somebody. */
static void *store_meshed(void *unused) {
  meshed[9 * page] = 99;
  meshed[12 * page + 5] = 98;
  atomic_fetch_add(&touches, 1);
  return unused;
}

static void store_in_closed(void) {
  struct mu_mesh_file file;
  pthread_t thread;
  meshed = make_meshed(&file, 1 << 12);
  uint64_t faults = mu_engine_counters.faults;
  EXPECT(close_meshed(meshed, 4) == 0, "close");
  pthread_create(&thread, NULL, store_meshed, NULL);
  pthread_join(thread, NULL); /* ends: the fault thread lets it go on */
  EXPECT(mu_engine_counters.faults >= faults + 2, "%zu faults", (size_t)(mu_engine_counters.faults - faults));
  EXPECT(!mu_barrier_claim(2) && !mu_barrier_claim(3), "units that were stored to are not ours to take");
  EXPECT(mu_barrier_claim(0) && mu_barrier_claim(4), "the others are");
  mu_barrier_open();
  EXPECT(meshed[9 * page] == 99 && meshed[12 * page + 5] == 98, "stores are lost");
  EXPECT(file.window[9 * page] == 10 && file.window[12 * page + 5] == 0, "stores reach the file");
  meshed[9 * page] = 10, meshed[12 * page + 5] = 0;
  expect_filled(meshed, ~(uint64_t)(1 << 12));
  mu_file_seal(&file);
}

IN_BOTH_TIERS(a_store_to_a_closed_meshed_unit_returns_it, store_in_closed)

/* Whoever stores to a claimed unit waits until it shows its new place, and stores there. */
static void store_in_claimed(void) {
  struct mu_mesh_file file, other;
  pthread_t thread;
  meshed = make_meshed(&file, 1 << 12);
  EXPECT(mu_file_create(&other, 8 * page) == 0 && mu_file_prepare(&other, 0, 8 * page) == 0, "file");
  EXPECT(close_meshed(meshed, 4) == 0 && mu_barrier_claim(2) && mu_barrier_claim(3), "close");
  atomic_store(&touches, 0);
  pthread_create(&thread, NULL, store_meshed, NULL);
  for (unsigned u = 2; u < 4; u++) memcpy(other.window + (u - 2) * 4 * page, mu_barrier_contents(u), 4 * page);
  _Atomic uint32_t never = 0;
  mu_futex_wait(&never, 0, 20000000);
  EXPECT(atomic_load(&touches) == 0, "a claimed unit was stored to");
  EXPECT(mu_barrier_remap(2, 2, other.fd, 0), "units 2 and 3");
  pthread_join(thread, NULL);
  mu_barrier_open();
  EXPECT(meshed[9 * page] == 99 && meshed[12 * page + 5] == 98, "stores are lost");
  EXPECT(other.window[page] == 10 && other.window[4 * page + 5] == 0, "stores reach the file");
  meshed[9 * page] = 10, meshed[12 * page + 5] = 0;
  mu_file_seal(&file);
  mu_file_seal(&other);
  expect_filled(meshed, ~(uint64_t)(1 << 12));
}

IN_BOTH_TIERS(who_stores_to_a_claimed_meshed_unit_waits, store_in_claimed)

static void fail_to_close_meshed(void) {
  struct mu_mesh_file file;
  char *at = make_meshed(&file, ~some_pages);
  for (int i = 0; i < 2; i++) {
    atomic_store(&refused_call, i ? MU_SYS_pread64 : MU_SYS_UFFDIO_WRITEPROTECT);
    EXPECT(close_meshed(at, 2) < 0, "call %d", i);
    atomic_store(&refused_call, -1);
    fill(at, 1);
    expect_filled(at, some_pages | 1);
    munmap(at, page);
    mmap(at, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file.fd, 0);
  }
  EXPECT(close_meshed(at, 2) == 0, "once more");
  mu_barrier_open();
  expect_filled(at, some_pages);
  mu_file_seal(&file);
}

Test(barrier, a_meshed_run_that_cannot_be_closed_is_as_it_was) {
  mu_sys_hook = refuse_call;
  with_engine(MU_TIER_FULL, fail_to_close_meshed);
}

/* ---- refused for ever ---- */

static _Atomic uint32_t refused_times;
static _Atomic int refused_with = EAGAIN;

static int refuse_from_now(enum mu_sys call, uint64_t index) {
  (void)index;
  if ((int)call != atomic_load(&refused_call)) return 0;
  atomic_fetch_add(&refused_times, 1);
  return atomic_load(&refused_with);
}

/* What was moved away does not move back: its bytes do. */
static void fail_to_put_back(void) {
  for (int i = 0; i < 2; i++) {
    char *at = make_region(PAGES);
    fill(at, some_pages);
    EXPECT(close_all(at, 4), "close");
    atomic_store(&refused_with, i ? EBUSY : EAGAIN);
    atomic_store(&refused_call, MU_SYS_UFFDIO_MOVE);
    mu_barrier_open();
    atomic_store(&refused_call, -1);
    EXPECT(atomic_load(&refused_times) > 0, "it was never asked for");
    expect_filled(at, some_pages);
    fill(at, ~(uint64_t)0);
    EXPECT(close_all(at, 4), "and the next barrier is like any other");
    mu_barrier_open();
    expect_filled(at, ~(uint64_t)0);
  }
}

Test(barrier, pages_that_do_not_move_back_are_copied) {
  mu_sys_hook = refuse_from_now;
  with_moves(fail_to_put_back);
}

/* Nothing is lost either where nothing can be told or lifted: but no barrier is closed any more. */
static void fail_to_disarm(void) {
  char *at = make_region(PAGES);
  fill(at, some_pages);
  EXPECT(close_all(at, 4) && mu_barrier_claim(1), "close");
  atomic_store(&refused_call, MU_SYS_UFFDIO_UNREGISTER);
  mu_barrier_open();
  atomic_store(&refused_call, -1);
  expect_filled(at, some_pages);
  fill(at, ~(uint64_t)0);
  expect_filled(at, ~(uint64_t)0);
  EXPECT(!close_all(make_region(PAGES), 4), "closed once more");
}

Test(barrier, what_stays_armed_is_whole_and_the_last) {
  mu_sys_hook = refuse_from_now;
  with_engine(MU_TIER_FULL, fail_to_disarm);
}

/* ---- mappings ---- */

enum { MOST_MAPPINGS = 200000 };

/* All that there may be. 0: there is no limit that one could reach. */
static size_t use_up_mappings(char **area) {
  size_t n = 0;
  *area = mmap(NULL, 2 * MOST_MAPPINGS * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  while (n < MOST_MAPPINGS && mprotect(*area + (2 * n + 1) * page, page, PROT_READ) == 0) n++;
  return n < MOST_MAPPINGS ? 2 * MOST_MAPPINGS * page : 0;
}

/*
 * The range is two mappings: registering the first takes none more, the second would have to be split, for which there
 * is none left. The first must not stay registered: a touch of its holes would wait for ever.
 */
static void register_half(void) {
  char *area, *at = make_region(3 * PAGES) + PAGES * page;
  madvise(at, PAGES / 2 * page, MADV_DONTFORK);
  fill(at, 0xff00000000f0f0f0);
  size_t used = use_up_mappings(&area);
  bool closed = close_all(at, 4);
  bool seen = false;
  if (!closed) {
    for (unsigned i = 0; i < PAGES; i++) seen |= at[i * page] != 0;
    at[page] = 2, at[17 * page] = 18; /* holes */
  } else {
    mu_barrier_open();
  }
  munmap(area, 2 * MOST_MAPPINGS * page);
  if (!used || closed) return;
  EXPECT(seen, "contents");
  at[page] = at[17 * page] = 0;
  expect_filled(at, 0xff00000000f0f0f0);
  EXPECT(close_all(at, 4), "once there are mappings");
  mu_barrier_open();
  expect_filled(at, 0xff00000000f0f0f0);
}

IN_BOTH_TIERS(half_a_registration_is_undone, register_half)

/* ---- a sandbox --------------------------------------------------------------------------------------------------- */

/*
 * From some call of a barrier on, the kernel refuses what a filter may refuse: at each call, of each kind. Whoever
 * waits goes on, and every page is there. The hook counts the calls of the mesher and of the fault thread alike.
 */
static _Atomic int sandbox_at = -1, sandbox_calls;
static _Atomic int sandbox_kind;

enum { NO_IOCTL, NO_IOCTL_NO_PREAD, NO_MOVE_BACK, NO_UFFD_AT_ALL, SANDBOXES };

static bool in_sandbox(enum mu_sys call, int kind) {
  switch (kind) {
  case NO_IOCTL:
    return call == MU_SYS_ioctl;
  case NO_IOCTL_NO_PREAD:
    return call == MU_SYS_ioctl || call == MU_SYS_pread64 || call == MU_SYS_openat;
  case NO_MOVE_BACK:
    return call == MU_SYS_UFFDIO_MOVE || call == MU_SYS_UFFDIO_COPY || call == MU_SYS_UFFDIO_UNREGISTER;
  default:
    return call == MU_SYS_ioctl || call == MU_SYS_pread64 || call == MU_SYS_ppoll || call == MU_SYS_read ||
           call == MU_SYS_madvise || call == MU_SYS_sched_setscheduler || call == MU_SYS_openat;
  }
}

static int refuse_in_sandbox(enum mu_sys call, uint64_t index) {
  (void)index;
  int at = atomic_load(&sandbox_at);
  if (at < 0 || call == MU_SYS_futex || call == MU_SYS_sched_yield) return 0;
  if (call < MU_SYS_CALLS && atomic_fetch_add(&sandbox_calls, 1) < at) return 0;
  return atomic_load(&sandbox_calls) > at && in_sandbox(call, atomic_load(&sandbox_kind)) ? EPERM : 0;
}

static struct mu_mesh_file sandbox_file;

/* A barrier with everything in it: a unit that is touched, one that waits, one that is meshed, one that is not. */
static bool barrier_in_sandbox(int at, int kind) {
  pthread_t thread;
  touched = make_region(PAGES);
  fill(touched, 0x0fff);
  atomic_store(&touches, 0);
  atomic_store(&sandbox_kind, kind);
  atomic_store(&sandbox_calls, 0);
  atomic_store(&sandbox_at, at);
  bool closed = close_all(touched, 4);
  pthread_create(&thread, NULL, touch, NULL);
  if (closed) {
    bool won = mu_barrier_claim(0);
    if (won) memcpy(sandbox_file.window, mu_barrier_contents(0), 4 * page);
    if (mu_barrier_claim(1)) nanosleep(&(struct timespec){0, 100000}, NULL);
    if (won) mu_barrier_remap(0, 1, sandbox_file.fd, 0);
    mu_barrier_open();
  }
  pthread_join(thread, NULL);
  int calls = atomic_load(&sandbox_calls);
  atomic_store(&sandbox_at, -1);
  EXPECT(touched[9 * page] == 99 && touched[12 * page + 5] == 98, "sandbox %d at call %d: stores are lost", kind, at);
  touched[9 * page] = 10, touched[12 * page + 5] = 0;
  expect_filled(touched, 0x0fff);
  fill(touched, ~(uint64_t)0); /* nothing waits any more */
  munmap(touched, PAGES * page);
  return calls > at;
}

static void sandbox_at_each_call(void) {
  alarm(60);
  for (int kind = 0; kind < SANDBOXES; kind++)
    for (int at = 0, more = 1; more; at++) {
      mu_engine_stop();
      mu_engine_start();
      if (!has_barrier()) return;
      EXPECT(mu_file_create(&sandbox_file, 4 * page) == 0 && mu_file_prepare(&sandbox_file, 0, 4 * page) == 0, "file");
      more = barrier_in_sandbox(at, kind);
      mu_file_seal(&sandbox_file);
      EXPECT(at < 1000, "it has no end");
    }
}

Test(barrier, a_sandbox_at_each_call_leaves_nobody_waiting, .timeout = 60) {
  mu_sys_hook = refuse_in_sandbox;
  with_engine(MU_TIER_FULL, sandbox_at_each_call);
}

Test(barrier, a_sandbox_at_each_call_leaves_nobody_waiting_write_protected, .timeout = 60) {
  mu_sys_hook = refuse_in_sandbox;
  with_engine(MU_TIER_FULL_WP, sandbox_at_each_call);
}

/* ---- kernels that do one mapping at a time ------------------------------------------------------------------------
 */

static _Atomic uint32_t writeprotects;

/* Whatever is longer than a page, for a while: as a range of many mappings. */
static int one_page_at_a_time(enum mu_sys call, uint64_t index) {
  (void)index;
  if (call != MU_SYS_UFFDIO_WRITEPROTECT) return 0;
  return atomic_fetch_add(&writeprotects, 1) % 9 < 6 ? ENOENT : 0;
}

static void protect_by_parts(void) {
  char *at = make_region(PAGES);
  for (int i = 0; i < 20; i++) {
    fill(at, some_pages);
    if (close_all(at, 4)) mu_barrier_open();
    expect_filled(at, some_pages);
  }
  EXPECT(writeprotects > 100, "%u calls", writeprotects);
}

Test(barrier, a_range_of_several_mappings_is_protected_by_parts) {
  mu_sys_hook = one_page_at_a_time;
  with_engine(MU_TIER_FULL_WP, protect_by_parts);
}

/* ---- mappings that are refused half-way ---------------------------------------------------------------------------
 */

static char *gap_at;
static _Atomic int gaps;

static int unmap_and_refuse(enum mu_sys call, uint64_t index) {
  (void)index;
  if (call != MU_SYS_mmap || atomic_load(&gaps) <= 0) return 0;
  if (atomic_fetch_sub(&gaps, 1) == 3) munmap(gap_at, 8 * page);
  return ENOMEM;
}

static void remap_into_gap(void) {
  struct mu_mesh_file file;
  char *at = make_region(PAGES);
  fill(at, some_pages);
  EXPECT(mu_file_create(&file, 8 * page) == 0 && mu_file_prepare(&file, 0, 8 * page) == 0, "file");
  memset(file.window, 77, 8 * page);
  EXPECT(close_all(at, 8) && mu_barrier_claim(2), "close");
  gap_at = at + 16 * page;
  atomic_store(&gaps, 3);
  EXPECT(mu_barrier_remap(2, 1, file.fd, 0), "it is mapped in the end");
  mu_barrier_open();
  EXPECT(at[16 * page] == 77 && at[24 * page - 1] == 77, "contents");
  mu_file_seal(&file);
}

Test(barrier, a_mapping_refused_half_way_is_made_again) {
  mu_sys_hook = unmap_and_refuse;
  with_engine(MU_TIER_FULL, remap_into_gap);
}

/* ---- racing writers ---- */

/* Each writer has a word of its own on every page, and knows what must be in it. */

enum { REGIONS = 96, WRITERS = 2, RACE_MS = 400, MOST_MS = 20000 };

static struct {
  char *base;
  struct mu_mesh_file file;
  bool meshed;
} regions[REGIONS];

static uint32_t store_one_in = 4; /* of so many reads */
static _Atomic uint32_t stop, seed_of_writers = 1;
static uint64_t expected[WRITERS][REGIONS * PAGES], meshed_units;
static _Atomic uint64_t stores[WRITERS];

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
    if (mu_rng_below(&rng, store_one_in)) continue;
    atomic_store_explicit(word(writer, i), ++expected[writer][i], memory_order_relaxed);
    atomic_fetch_add_explicit(&stores[writer], 1, memory_order_relaxed);
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

/* Of a region that is meshed: what has no private copy goes to another file, some of it. */
static void pass_again(uint32_t r, uint64_t *rng) {
  struct mu_mesh_file file;
  unsigned size = 1u << mu_rng_below(rng, 4), units = PAGES / size;
  uint64_t packed = 0;
  if (mu_file_create(&file, PAGES * page) < 0) {
    note("a mesh file");
    return;
  }
  EXPECT(mu_barrier_close(MU_MESH_FILE, regions[r].base, PAGES, size, ~(uint64_t)0, &refused) == 0, "region %u", r);
  for (unsigned u = 0; u < units; u++) {
    uint64_t pages = (((uint64_t)1 << size) - 1) << u * size;
    if (mu_rng_below(rng, 4) == 0) continue;
    bool claimed = mu_barrier_claim(u);
    EXPECT(!claimed || !(refused & pages), "unit %u of %u: claimed, though it was refused", u, units);
    if (!claimed || mu_rng_below(rng, 4) == 0 || mu_file_prepare(&file, u * size * page, size * page) < 0) continue;
    memcpy(file.window + u * size * page, mu_barrier_contents(u), size * page);
    packed |= (uint64_t)1 << u;
  }
  nanosleep(&(struct timespec){0, 20000}, NULL); /* others run: a store that did not wait would be lost */
  for (unsigned u = 0; u < units; u++) {
    if (!(packed >> u & 1)) continue;
    EXPECT(mu_barrier_remap(u, 1, file.fd, (uint64_t)u * size * page), "unit %u", u);
    meshed_units++;
  }
  mu_barrier_open();
  mu_file_seal(&file);
}

static bool all_have_stored(void) {
  for (unsigned w = 0; w < WRITERS; w++)
    if (!atomic_load_explicit(&stores[w], memory_order_relaxed)) return false;
  return true;
}

static void race_with(void (*carry_out)(uint32_t, uint64_t *)) {
  pthread_t writers[WRITERS];
  uint64_t rng = 77, began = mu_now_ns(), ms = 0;
  for (uintptr_t i = 0; i < WRITERS; i++) pthread_create(&writers[i], NULL, write_at_random, (void *)i);
  /* On a busy machine it takes longer until something has happened. */
  for (; ms < RACE_MS || (ms < MOST_MS && (meshed_units < 20 || !all_have_stored()));
       ms = (mu_now_ns() - began) / 1000000)
    carry_out(mu_rng_below(&rng, REGIONS), &rng);
  atomic_store(&stop, 1);
  for (unsigned i = 0; i < WRITERS; i++) pthread_join(writers[i], NULL);
  for (unsigned w = 0; w < WRITERS; w++) {
    EXPECT(stores[w] > 0, "writer %u", w);
    for (uint32_t i = 0; i < REGIONS * PAGES; i++) check_word(w, i);
  }
  EXPECT(meshed_units > 0, "nothing was meshed");
}

static void race(void) {
  for (uint32_t r = 0; r < REGIONS; r++) regions[r].base = make_region(PAGES);
  race_with(pass);
}

IN_BOTH_TIERS(no_store_is_lost, race)

/* Files that are holes but for a few pages; stores are rare, since each takes its page out of the game. */
static void race_meshed(void) {
  store_one_in = 500;
  for (uint32_t r = 0; r < REGIONS; r++) {
    EXPECT(mu_file_create(&regions[r].file, PAGES * page) == 0, "a mesh file");
    EXPECT(mu_file_prepare(&regions[r].file, r % 50 * page, 8 * page) == 0, "a mesh file");
    regions[r].base =
        mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, regions[r].file.fd, 0);
    mu_file_seal(&regions[r].file);
  }
  race_with(pass_again);
}

IN_BOTH_TIERS(no_store_to_meshed_memory_is_lost, race_meshed)

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

static _Atomic bool ring_is_gone;

static int no_vector_and_then_no_ring(enum mu_sys call, uint64_t index) {
  (void)index;
  if (call == MU_SYS_io_uring_enter && atomic_load(&ring_is_gone)) return EPERM;
  return call == MU_SYS_process_madvise ? EPERM : 0;
}

/* With an operation under way that nobody waits for. */
static void lose_ring(void) {
  char *at = make_region(PAGES);
  fill(at, ~(uint64_t)0);
  mu_populate(at, 4 * page);
  atomic_store(&ring_is_gone, true);
  struct mu_range ranges[] = {{at, page}, {at + 5 * page, 2 * page}, {at + 20 * page, page}};
  EXPECT(mu_drop(ranges, 3), "drop");
  expect_filled(at, ~(uint64_t)(1 | 3 << 5 | 1 << 20));
  mu_reclaim_idle();
}

Test(barrier, dropped_ranges_read_as_zeros_when_the_ring_fails) {
  mu_sys_hook = no_vector_and_then_no_ring;
  with_engine(MU_TIER_FULL, lose_ring);
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
