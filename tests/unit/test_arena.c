/* SPDX-License-Identifier: Apache-2.0 */
#include "src/arena.h"
#include "src/rng.h"
#include "src/sys.h"
#include "tests/unit/pages.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>

/* Every assertion that Criterion counts costs a message: loops use this one. */
#define CHECK(condition, format, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) cr_assert_fail("%s: " format, #condition, ##__VA_ARGS__);                                        \
  } while (0)

static bool zeroed;

static bool drop_for_real(void *start, size_t len) {
  return madvise(start, len, MADV_DONTNEED) == 0;
}

static size_t get(size_t pages, size_t align) {
  size_t page = mu_extent_alloc(pages, align, &zeroed);
  cr_assert_neq(page, MU_NO_PAGE);
  cr_assert_leq(page + pages, mu_arena_limit());
  return page;
}

static uint64_t *word_of(size_t page) {
  return mu_page_address(page);
}

static size_t dirty_pages(void) {
  return atomic_load(&mu_dirty_pages);
}

static void make_arena(void) {
  cr_assert(mu_arena_init());
}

TestSuite(arena, .init = make_arena, .timeout = 30);

Test(arena, tables_are_apart_and_aligned) {
  size_t run_bytes = MU_RUN_PAGES * mu_arena.page_size;
  cr_assert_eq((uintptr_t)mu_arena.base % run_bytes, 0);
  cr_assert_eq(mu_arena.reserved % MU_RUN_PAGES, 0);
  cr_assert_eq((size_t)1 << mu_arena.page_shift, mu_arena.page_size);
  char *end = mu_arena.base + (mu_arena.reserved << mu_arena.page_shift);
  cr_assert_geq((char *)mu_arena.page_map, end);
  cr_assert_geq((char *)mu_arena.extents, (char *)mu_arena.page_map + mu_arena.reserved);
  cr_assert_geq((char *)mu_arena.runs, (char *)(mu_arena.extents + mu_arena.reserved));
  cr_assert_geq(mu_arena.span_tables, (char *)(mu_arena.runs + mu_arena.reserved / MU_RUN_PAGES));
  cr_assert_eq(mu_page_of(mu_page_address(77)), 77);
  cr_assert_geq(mu_page_of(&zeroed), mu_arena.reserved);
  cr_assert_eq(mu_pages_for(1), 1);
  cr_assert_eq(mu_pages_for(mu_arena.page_size), 1);
  cr_assert_eq(mu_pages_for(mu_arena.page_size + 1), 2);
}

Test(arena, addresses_are_aligned) {
  for (size_t align = 1; align <= 4096; align *= 2)
    for (size_t pages = 1; pages < 100; pages += 14) {
      size_t page = get(pages, align);
      cr_assert_eq((uintptr_t)mu_page_address(page) % (align << mu_arena.page_shift), 0, "%zu pages to %zu", pages,
                   align);
      cr_assert_geq(page, MU_RUN_PAGES);
    }
}

Test(arena, new_memory_is_zeroed_and_stays_so_in_clean_extents) {
  size_t page = get(8, 1);
  cr_assert(zeroed);
  mu_extent_free(page, 8, true);
  cr_assert_eq(dirty_pages(), 0);
  cr_assert_eq(get(8, 1), page);
  cr_assert(zeroed);
}

Test(arena, dirty_memory_is_not_called_zeroed_until_it_is_dropped) {
  size_t page = get(8, 1);
  for (size_t i = 0; i < 8; i++) *word_of(page + i) = 1;
  mu_extent_free(page, 8, false);
  cr_assert_eq(dirty_pages(), 8);
  cr_assert_eq(get(8, 1), page);
  cr_assert(!zeroed);
  mu_extent_free(page, 8, false);
  cr_assert_eq(mu_extent_purge(atomic_load(&mu_tick), SIZE_MAX, drop_for_real), 8);
  cr_assert_eq(dirty_pages(), 0);
  cr_assert_eq(get(8, 1), page);
  cr_assert(zeroed);
  for (size_t i = 0; i < 8; i++) cr_assert_eq(*word_of(page + i), 0);
}

/* The mapping that p is in has a flag, as /proc/self/smaps shows it. */
static bool has_flag(const void *p, const char *flag) {
  char line[512];
  bool here = false, has = false;
  FILE *f = fopen("/proc/self/smaps", "r");
  while (f && fgets(line, sizeof line, f)) {
    unsigned long from, to;
    if (sscanf(line, "%lx-%lx ", &from, &to) == 2) here = (uintptr_t)p >= from && (uintptr_t)p < to;
    if (here && strncmp(line, "VmFlags:", 8) == 0) has = strstr(line, flag) != NULL;
  }
  if (f) fclose(f);
  return has;
}

Test(arena, no_huge_page_is_resident_because_of_us) {
  size_t page = get(1, 1);
  if (!has_flag(word_of(page), " rd ")) cr_skip_test("no flags of mappings here");
  const void *of_ours[] = {word_of(page), mu_arena.page_map + page, mu_extent_at(page),
                           &mu_arena.runs[page / MU_RUN_PAGES]};
  for (size_t i = 0; i < sizeof of_ours / sizeof *of_ours; i++) cr_assert(has_flag(of_ours[i], " nh "), "%zu", i);
}

/* Six extents of four pages, all taken, and what follows them is too. */
static size_t six_neighbours(void) {
  size_t first = get(4, 1);
  for (size_t i = 1; i < 6; i++) cr_assert_eq(get(4, 1), first + i * 4);
  get(4, 1);
  return first;
}

Test(arena, neighbours_merge_from_either_side) {
  static const size_t orders[][3] = {{1, 2, 3}, {3, 2, 1}, {1, 3, 2}, {2, 1, 3}};
  size_t first = six_neighbours();
  for (int clean = 0; clean < 2; clean++)
    for (size_t i = 0; i < 4; i++) {
      for (size_t k = 0; k < 3; k++) mu_extent_free(first + orders[i][k] * 4, 4, clean);
      cr_assert_eq(mu_extent_at(first + 4)->pages, 12);
      cr_assert_eq(get(12, 1), first + 4, "order %zu", i);
      cr_assert_eq(zeroed, (bool)clean);
    }
}

Test(arena, clean_and_dirty_do_not_merge) {
  size_t first = six_neighbours();
  mu_extent_free(first, 4, true);
  mu_extent_free(first + 4, 4, false);
  mu_extent_free(first + 8, 4, true);
  cr_assert_eq(mu_extent_at(first)->pages, 4);
  cr_assert_eq(mu_extent_at(first + 4)->pages, 4);
  cr_assert_eq(mu_extent_at(first + 8)->pages, 4);
  cr_assert_eq(get(4, 1), first + 4, "dirty memory is used first: it is resident already");
}

Test(arena, what_is_left_of_a_split_is_free) {
  size_t first = six_neighbours();
  mu_extent_free(first, 24, false);
  cr_assert_eq(get(5, 1), first);
  cr_assert_eq(dirty_pages(), 19);
  cr_assert_eq(get(19, 1), first + 5);
  cr_assert_eq(dirty_pages(), 0);
  cr_assert(!zeroed);
}

Test(arena, alignment_within_a_free_extent_leaves_both_ends_free) {
  size_t first = get(64, 64);
  get(1, 1);
  mu_extent_free(first + 1, 63, true);
  cr_assert_eq(get(3, 16), first + 16);
  cr_assert_eq(mu_extent_at(first + 1)->pages, 15);
  cr_assert_eq(mu_extent_at(first + 19)->pages, 45);
  mu_extent_free(first + 16, 3, true);
  cr_assert_eq(mu_extent_at(first + 1)->pages, 63);
}

Test(arena, grows_in_place_into_free_memory_alone) {
  size_t first = six_neighbours();
  cr_assert_not(mu_extent_grow(first, 4, 1, &zeroed));
  mu_extent_free(first + 4, 4, false);
  cr_assert_not(mu_extent_grow(first, 4, 5, &zeroed));
  cr_assert(mu_extent_grow(first, 4, 3, &zeroed));
  cr_assert_not(zeroed);
  cr_assert_eq(dirty_pages(), 1);
  cr_assert_eq(get(1, 1), first + 7);
  mu_extent_free(first + 8, 4, true);
  cr_assert(mu_extent_grow(first + 7, 1, 4, &zeroed));
  cr_assert(zeroed);
}

Test(arena, the_last_extent_grows_as_far_as_the_reservation) {
  size_t pages = 4, first = get(pages, 1);
  cr_assert(mu_extent_grow(first, pages, 5000, &zeroed));
  cr_assert(zeroed);
  pages += 5000;
  memset(mu_page_address(first), 1, pages << mu_arena.page_shift);
  cr_assert_not(mu_extent_grow(first, pages, mu_arena.reserved, &zeroed));
  cr_assert_eq(get(1, 1), first + pages);
}

Test(arena, more_than_the_reservation_is_refused) {
  cr_assert_eq(mu_extent_alloc(mu_arena.reserved, 1, &zeroed), MU_NO_PAGE);
  cr_assert_eq(mu_extent_alloc(1, (size_t)PTRDIFF_MAX >> mu_arena.page_shift, &zeroed), MU_NO_PAGE);
  cr_assert_eq(get(1, 1), MU_RUN_PAGES);
}

static int no_mprotect(enum mu_sys call, uint64_t index) {
  return call == MU_SYS_mprotect && index >= 2 ? ENOMEM : 0;
}

Test(arena, a_refused_growth_changes_nothing) {
  mu_sys_hook = no_mprotect; /* in the middle of the tables */
  cr_assert_eq(mu_extent_alloc(3, 1, &zeroed), MU_NO_PAGE);
  cr_assert_eq(mu_extent_alloc(3, 512, &zeroed), MU_NO_PAGE);
  cr_assert_eq(mu_arena_limit(), 0);
  mu_sys_hook = NULL;
  size_t page = get(3000, 1);
  cr_assert_eq(page, MU_RUN_PAGES);
  memset(mu_page_address(page), 1, (size_t)3000 << mu_arena.page_shift);
  for (size_t i = 0; i < mu_arena_limit(); i++) CHECK(mu_arena.page_map[i] == 0, "page %zu", i);
}

/* ---- purging ---- */

static struct { size_t calls, page, pages, table_bytes; } dropped;

static bool drop_and_note(void *start, size_t len) {
  size_t page = mu_page_of(start);
  dropped.calls++;
  if (page < mu_arena.reserved) {
    dropped.page = page;
    dropped.pages = len >> mu_arena.page_shift;
  } else {
    /* Metadata: entries of that extent alone, and neither its first nor its last. */
    CHECK((char *)start >= (char *)&mu_arena.extents[dropped.page + 1], "too early");
    CHECK((char *)start + len <= (char *)&mu_arena.extents[dropped.page + dropped.pages - 1], "too late");
    dropped.table_bytes += len;
  }
  return drop_for_real(start, len);
}

Test(arena, the_oldest_is_dropped_first_and_the_young_not_at_all) {
  size_t first = six_neighbours();
  for (size_t i = 0; i < 6; i += 2) {
    atomic_store(&mu_tick, (uint32_t)(10 * i + 10));
    mu_extent_free(first + (4 - i) * 4, 4, false);
  }
  cr_assert_eq(mu_extent_purge(9, SIZE_MAX, drop_and_note), 0);
  cr_assert_eq(mu_extent_purge(30, 1, drop_and_note), 4, "it ends when it has dropped enough");
  cr_assert_eq(dropped.page, first + 16);
  cr_assert_eq(dropped.pages, 4);
  cr_assert_eq(mu_extent_purge(30, SIZE_MAX, drop_and_note), 4);
  cr_assert_eq(dropped.page, first + 8);
  cr_assert_eq(dirty_pages(), 4);
  cr_assert_eq(dropped.calls, 2);
}

Test(arena, ticks_may_wrap_around) {
  size_t first = six_neighbours();
  atomic_store(&mu_tick, UINT32_MAX - 1);
  mu_extent_free(first, 4, false);
  atomic_store(&mu_tick, 3);
  mu_extent_free(first + 8, 4, false);
  cr_assert_eq(mu_extent_purge(2, SIZE_MAX, drop_and_note), 4);
  cr_assert_eq(dropped.page, first);
}

Test(arena, metadata_of_whole_pages_goes_too) {
  const size_t many = 64 * mu_arena.page_size / sizeof(struct mu_extent);
  size_t first = get(many, MU_RUN_PAGES);
  get(1, 1);
  mu_extent_free(first, many, false);
  mu_extent_purge(atomic_load(&mu_tick), SIZE_MAX, drop_and_note);
  cr_assert_geq(dropped.table_bytes, (many * sizeof(struct mu_extent)) - 2 * mu_arena.page_size);
  cr_assert_eq(mu_extent_at(first)->pages, many);
  cr_assert_eq(get(many, 1), first);
}

/* ---- a small reservation ---- */

/* Without the suite's arena: its size depends on the limit. */
Test(arena_limited, a_small_reservation_can_be_used_up, .timeout = 30) {
  struct rlimit limit;
  char statm[128];
  cr_assert_gt(mu_read_file("/proc/self/statm", statm, sizeof statm), 0);
  getrlimit(RLIMIT_AS, &limit);
  size_t used = strtoull(statm, NULL, 10) * getauxval(AT_PAGESZ), room = (size_t)64 << 20;
  limit.rlim_cur = used + room;
  cr_assert_eq(setrlimit(RLIMIT_AS, &limit), 0);
  getrlimit(RLIMIT_AS, &limit);
  if (limit.rlim_cur != used + room) cr_skip_test("an emulator that takes a limit and does not keep it");
  cr_assert(mu_arena_init());
  cr_assert_lt(mu_arena.reserved << mu_arena.page_shift, room / 4 * 3 + 1, "the program needs some of it");
  size_t n = 0, page, last = 0, pages = mu_arena.reserved - MU_RUN_PAGES;
  while ((page = mu_extent_alloc(1, 1, &zeroed))) {
    *word_of(page) = page;
    CHECK(page > last, "page %zu comes after %zu", page, last);
    last = page;
    n++;
  }
  cr_assert_eq(n, pages, "%zu of %zu pages", n, pages);
  mu_extent_free(MU_RUN_PAGES, pages, false);
  cr_assert_eq(mu_extent_alloc(pages + 1, 1, &zeroed), MU_NO_PAGE);
  cr_assert_eq(mu_extent_alloc(pages, 1, &zeroed), MU_RUN_PAGES);
}

/* ---- any sequence of calls, against a shadow of each page ---- */

enum { SHADOW_PAGES = 1 << 16, MAX_HELD = 400, SEEDS = 4, STEPS = 2000 };

enum kind { UNUSED_CLEAN, UNUSED_DIRTY, HELD };

static struct {
  uint64_t seed, rng;
  uint8_t kind[SHADOW_PAGES];
  uint32_t dirty_since[SHADOW_PAGES];
  uint64_t stamp[SHADOW_PAGES]; /* first word of held pages */
  struct {
    size_t page, pages;
  } held[MAX_HELD];
  size_t count, dirty, top; /* top: pages from it on were never handed out */
} model = {.top = MU_RUN_PAGES};

#define MUST(condition, format, ...) CHECK(condition, "seed %zu: " format, ##__VA_ARGS__)
#define SEED                         ((size_t)model.seed)

static void take_page(size_t page, bool zero) {
  MUST(page < SHADOW_PAGES && model.kind[page] != HELD, "page %zu is handed out twice", SEED, page);
  MUST(zero == (model.kind[page] == UNUSED_CLEAN), "page %zu, said to be zeroed: %d", SEED, page, zero);
  MUST(!zero || *word_of(page) == 0, "page %zu is not zeroed", SEED, page);
  if (model.kind[page] == UNUSED_DIRTY) model.dirty--;
  model.kind[page] = HELD;
  *word_of(page) = model.stamp[page] = mu_rng_next(&model.rng) | 1;
}

static void release_page(size_t page, bool clean) {
  MUST(*word_of(page) == model.stamp[page], "page %zu was overwritten", SEED, page);
  model.kind[page] = clean ? UNUSED_CLEAN : UNUSED_DIRTY;
  model.dirty_since[page] = atomic_load(&mu_tick);
  model.dirty += !clean;
}

static size_t random_pages(void) {
  uint32_t kind = mu_rng_below(&model.rng, 10);
  return 1 + mu_rng_below(&model.rng, kind < 6 ? 8 : kind < 9 ? 100 : 700);
}

static void model_alloc(void) {
  size_t pages = random_pages(), align = mu_rng_below(&model.rng, 4) ? 1 : (size_t)1 << mu_rng_below(&model.rng, 11);
  bool zero;
  if (model.count == MAX_HELD) return;
  size_t page = mu_extent_alloc(pages, align, &zero);
  MUST(page >= MU_RUN_PAGES && page + pages <= mu_arena_limit(), "page %zu", SEED, page);
  MUST((uintptr_t)mu_page_address(page) % (align << mu_arena.page_shift) == 0, "%zu not to %zu", SEED, page, align);
  for (size_t i = 0; i < pages; i++) take_page(page + i, zero);
  model.top = mu_max(model.top, page + pages);
  model.held[model.count].page = page;
  model.held[model.count++].pages = pages;
}

static void model_free(void) {
  if (!model.count) return;
  size_t i = mu_rng_below(&model.rng, (uint32_t)model.count);
  size_t page = model.held[i].page, pages = model.held[i].pages, all = pages;
  bool clean = mu_rng_below(&model.rng, 3) == 0;
  if (pages > 1 && mu_rng_below(&model.rng, 4) == 0) pages = 1 + mu_rng_below(&model.rng, (uint32_t)pages - 1);
  page += all - pages; /* its end, or all of it */
  for (size_t k = 0; k < pages; k++) release_page(page + k, clean);
  if (clean) drop_for_real(mu_page_address(page), pages << mu_arena.page_shift);
  mu_extent_free(page, pages, clean);
  model.held[i].pages -= pages;
  if (!model.held[i].pages) model.held[i] = model.held[--model.count];
}

static void model_grow(void) {
  if (!model.count) return;
  size_t i = mu_rng_below(&model.rng, (uint32_t)model.count), more = random_pages(), same = 0;
  size_t next = model.held[i].page + model.held[i].pages;
  while (same < more && model.kind[next] != HELD && model.kind[next + same] == model.kind[next] &&
         (next == model.top || next + same < model.top))
    same++;
  bool zero, grown = mu_extent_grow(model.held[i].page, model.held[i].pages, more, &zero);
  MUST(grown || same < more, "%zu free pages after %zu are not used", SEED, more, next);
  if (!grown) return;
  for (size_t k = 0; k < more; k++) take_page(next + k, zero);
  model.held[i].pages += more;
  model.top = mu_max(model.top, next + more);
}

static uint32_t purge_tick;

/* While memory is dropped others allocate and free. */
static bool drop_in_model(void *start, size_t len) {
  size_t page = mu_page_of(start), pages = len >> mu_arena.page_shift;
  drop_for_real(start, len);
  if (page >= mu_arena.reserved) return true;
  for (size_t i = page; i < page + pages; i++) {
    MUST(model.kind[i] == UNUSED_DIRTY, "page %zu is dropped", SEED, i);
    MUST((int32_t)(model.dirty_since[i] - purge_tick) <= 0, "page %zu is too young", SEED, i);
    model.kind[i] = HELD; /* nobody may be given it now */
    model.stamp[i] = 0;
  }
  model.dirty -= pages;
  for (uint32_t n = mu_rng_below(&model.rng, 4); n; n--) mu_rng_below(&model.rng, 2) ? model_alloc() : model_free();
  for (size_t i = page; i < page + pages; i++) model.kind[i] = UNUSED_CLEAN;
  return true;
}

static void model_purge(void) {
  bool all = mu_rng_below(&model.rng, 2);
  purge_tick = atomic_load(&mu_tick) - (all ? 0 : mu_rng_below(&model.rng, 4));
  mu_extent_purge(purge_tick, mu_rng_below(&model.rng, 3) ? 1000 : 1, drop_in_model);
  if (!all) return;
  mu_extent_purge(purge_tick, SIZE_MAX, drop_in_model);
  MUST(dirty_pages() == 0, "%zu pages left", SEED, dirty_pages());
}

/* Free memory is a sequence of extents with their ends marked, none next to one of its kind. */
static void check_extents(void) {
  size_t last_end = 0;
  int last_state = MU_NONE;
  mu_lock_take(&mu_extent_lock);
  mu_arena_validate(false);
  mu_lock_release(&mu_extent_lock);
  for (size_t page = MU_RUN_PAGES; page < model.top; page++) {
    const struct mu_extent *m = mu_extent_at(page);
    MUST(m->state == MU_NONE || model.kind[page] != HELD, "page %zu has state %d", SEED, page, m->state);
    if (model.kind[page] == HELD) continue;
    MUST(m->state == (model.kind[page] == UNUSED_DIRTY ? MU_EXTENT_DIRTY : MU_EXTENT_CLEAN), "page %zu has state %d",
         SEED, page, m->state);
    MUST(last_end != page || last_state != m->state, "page %zu: not merged", SEED, page);
    size_t end = page + m->pages;
    for (size_t i = page; i < end; i++) MUST(model.kind[i] == model.kind[page], "page %zu of %zu", SEED, i, page);
    for (size_t i = page + 1; i + 1 < end; i++) MUST(mu_extent_at(i)->state == MU_NONE, "page %zu", SEED, i);
    MUST(m->pages == 1 || (mu_extent_at(end - 1)->state == MU_EXTENT_TAIL && mu_extent_at(end - 1)->pages == m->pages),
         "page %zu: its end at %zu is not marked", SEED, page, end);
    last_end = end;
    last_state = m->state;
    page = end - 1;
  }
}

static void run_model(uint64_t seed) {
  model.seed = seed;
  model.rng = seed * 0x9E3779B97F4A7C15u + 1;
  for (int step = 0; step < STEPS; step++) {
    uint32_t what = mu_rng_below(&model.rng, 100);
    if (what < 45)
      model_alloc();
    else if (what < 85)
      model_free();
    else if (what < 95)
      model_grow();
    else if (what < 98)
      atomic_fetch_add(&mu_tick, 1);
    else
      model_purge();
    MUST(dirty_pages() == model.dirty, "%zu dirty pages, not %zu", SEED, dirty_pages(), model.dirty);
    if (step % 100 == 0) check_extents();
  }
  while (model.count) model_free();
  check_extents();
}

/* One after the other in one arena: a seed that fails needs those before it. */
Test(arena, any_sequence_of_calls) {
  for (uint64_t seed = 1; seed <= SEEDS; seed++) run_model(seed);
}

/* ---- memory for the library itself ---- */

Test(arena, metadata_memory_is_zeroed_aligned_and_handed_out_once) {
  uint64_t rng = 1;
  char *parts[300];
  size_t sizes[300];
  for (int i = 0; i < 300; i++) {
    sizes[i] = 1 + mu_rng_below(&rng, i % 50 == 49 ? 400000 : 3000);
    parts[i] = mu_meta_alloc(sizes[i]);
    CHECK(parts[i] && (uintptr_t)parts[i] % 64 == 0, "%zu bytes at %p", sizes[i], (void *)parts[i]);
    for (size_t k = 0; k < sizes[i]; k++) CHECK(parts[i][k] == 0, "byte %zu of part %d", k, i);
    memset(parts[i], i + 1, sizes[i]);
  }
  for (int i = 0; i < 300; i++)
    for (size_t k = 0; k < sizes[i]; k++) CHECK(parts[i][k] == (char)(i + 1), "byte %zu of part %d", k, i);
}

static int no_mmap(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == MU_SYS_mmap ? ENOMEM : 0;
}

Test(arena, metadata_memory_can_run_out_and_come_back) {
  mu_meta_alloc(64);
  mu_sys_hook = no_mmap;
  cr_assert_null(mu_meta_alloc((size_t)1 << 20));
  cr_assert_not(mu_fresh_mapping(mu_page_address(MU_RUN_PAGES), mu_arena.page_size));
  mu_sys_hook = NULL;
  cr_assert_not_null(mu_meta_alloc((size_t)1 << 20));
}

Test(arena, a_fresh_mapping_reads_as_zeros) {
  size_t page = get(4, 1);
  memset(mu_page_address(page), 1, (size_t)4 << mu_arena.page_shift);
  cr_assert(mu_fresh_mapping(mu_page_address(page + 1), (size_t)2 << mu_arena.page_shift));
  for (size_t i = 0; i < 4; i++) cr_assert_eq(*word_of(page + i) == 0, i == 1 || i == 2);
  *word_of(page + 1) = 1;
}

Test(arena_refused, no_reservation_no_arena) {
  mu_sys_hook = no_mmap;
  cr_assert_not(mu_arena_init());
}
