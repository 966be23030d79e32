/* SPDX-License-Identifier: Apache-2.0 */
#include "src/arena.h"
#include "src/huge.h"
#include "src/options.h"
#include "src/sys.h"
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>

struct mu_arena mu_arena;
struct mu_lock mu_extent_lock = MU_LOCK_INIT(MU_RANK_EXTENT);
_Atomic size_t mu_dirty_pages, mu_large_pages;
_Atomic uint32_t mu_tick = 1;
_Atomic uint32_t mu_forks;

enum { EXACT_BINS = 64, BINS = 160, BIN_WORDS = (BINS + 63) / 64, SCAN = 16 };

/* Free extents, under mu_extent_lock: [0] dirty, [1] clean. */
static struct extents {
  uint32_t head[2][BINS];
  uint64_t nonempty[2][BIN_WORDS];
  uint32_t oldest, newest; /* dirty ones by age */
  size_t top;              /* pages below it were handed out at least once */
  size_t committed;        /* pages below it are accessible */
  size_t huge;             /* pages from here to `committed` may get huge pages; 0: none */
  bool lost;               /* see mu_extents_lost */
} x;

/* ---- reservation ------------------------------------------------------------------------------------------------- */

enum { MAX_SLAB = 1 << 18 };
static const size_t MIN_RESERVE = (size_t)4 << 20, MAX_RESERVE = (size_t)1 << 40;

/* A one-page span's MiniHeap takes 16 bytes and a bit for each 16 bytes of page; slabs lose less than a quarter. */
static size_t span_table_bytes(size_t pages) {
  size_t most = 16 + mu_arena.page_size / 128;
  return mu_round_up(pages * (most + most / 4), MAX_SLAB);
}

static size_t table_bytes(size_t pages) {
  size_t p = mu_arena.page_size;
  return mu_round_up(pages, p) + span_table_bytes(pages) + mu_round_up(pages * sizeof(struct mu_extent), p) +
         mu_round_up(pages / MU_RUN_PAGES * sizeof(struct mu_run), p);
}

/* Under ulimit -v the rest of the program needs address space too: a quarter of what is left stays with it. */
static size_t reserve_limit(void) {
  struct rlimit limit;
  if (mu_sys_call(MU_SYS_prlimit64, 0, RLIMIT_AS, 0, (long)&limit, 0, 0) < 0 || limit.rlim_cur == RLIM_INFINITY)
    return SIZE_MAX;
  char statm[128];
  size_t used =
      mu_read_file("/proc/self/statm", statm, sizeof statm) > 0 ? strtoull(statm, NULL, 10) * getauxval(AT_PAGESZ) : 0;
  return limit.rlim_cur > used ? (limit.rlim_cur - used) / 4 * 3 : 0;
}

MU_AT_START static bool reserve(size_t bytes) {
  size_t pages = bytes >> mu_arena.page_shift, tables = table_bytes(pages);
  size_t align = mu_max(MU_RUN_PAGES * mu_arena.page_size, MU_HUGE_BYTES);
  int err;
  char *at = mu_mmap(NULL, bytes + tables + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
  if (!at) return false;
  mu_arena.base = (char *)mu_round_up((uintptr_t)at, align);
  mu_arena.reserved = pages;
  char *tables_at = mu_arena.base + bytes;
  mu_arena.page_map = (uint8_t *)tables_at;
  tables_at += mu_round_up(pages, mu_arena.page_size);
  mu_arena.extents = (struct mu_extent *)(void *)tables_at;
  tables_at += mu_round_up(pages * sizeof(struct mu_extent), mu_arena.page_size);
  mu_arena.runs = (struct mu_run *)(void *)tables_at;
  tables_at += mu_round_up(pages / MU_RUN_PAGES * sizeof(struct mu_run), mu_arena.page_size);
  mu_arena.span_tables = tables_at;
  mu_arena.span_tables_bytes = span_table_bytes(pages);
  /* Huge pages would be resident because of us even when mostly empty. */
  mu_madvise(mu_arena.base, bytes + tables, MADV_NOHUGEPAGE);
  return true;
}

/* The kernel's, or a larger one for tests: several of the kernel's are a page then, and nothing is meshed. */
static size_t page_size(void) {
  size_t real = getauxval(AT_PAGESZ), test = mu_options.test_page;
  return test > real && !(test & (test - 1)) ? test : real;
}

MU_AT_START bool mu_arena_init(void) {
  mu_arena.page_size = page_size();
  mu_arena.page_shift = mu_log2(mu_arena.page_size);
  mu_size_class_init(mu_arena.page_size);
  size_t run_bytes = MU_RUN_PAGES * mu_arena.page_size;
  /* The tables take less than a sixteenth of the arena. */
  size_t bytes = mu_round_down(mu_min(MAX_RESERVE, reserve_limit() / 17 * 16), run_bytes);
  while (bytes >= MIN_RESERVE && !reserve(bytes)) bytes = mu_round_down(bytes / 2, run_bytes);
  x.top = MU_RUN_PAGES; /* the first run stays inaccessible: page 0 ends lists */
  MU_NOT_ONE_CONSTANT();
  x.committed = MU_RUN_PAGES;
  return bytes >= MIN_RESERVE;
}

/* ---- growth ------------------------------------------------------------------------------------------------------ */

static const size_t MIN_HUGE_STEP = (size_t)4 << 20; /* of a heap of 32 MiB */

static void end_huge(void) {
  if (x.huge) mu_huge_end(mu_page_address(x.huge), (x.committed - x.huge) << mu_arena.page_shift);
  x.huge = MU_NO_PAGE;
}

void mu_extents_dropping(const void *start, size_t len) {
  mu_lock_take(&mu_extent_lock);
  if (x.huge && (const char *)start + len > (const char *)mu_page_address(x.huge)) end_huge();
  mu_lock_release(&mu_extent_lock);
}

/* Makes a table accessible as far as `to` bytes; `from` bytes already are. */
MU_AT_START static bool commit_table(void *table, size_t from, size_t to) {
  from = mu_round_up(from, mu_arena.page_size);
  to = mu_round_up(to, mu_arena.page_size);
  return to <= from || mu_mprotect((char *)table + from, to - from, PROT_READ | PROT_WRITE) == 0;
}

/* The end of a heap that grows by much at a time is about to be filled: it may have huge pages, until it has grown
 * again or something of it is dropped. */
static bool make_accessible(char *start, size_t len) {
  end_huge();
  if (len < MIN_HUGE_STEP || !mu_huge_wanted(len)) return mu_mprotect(start, len, PROT_READ | PROT_WRITE) == 0;
  if (!mu_huge_map(start, len)) return false;
  x.huge = x.committed;
  return true;
}

MU_AT_START static bool commit_to(size_t pages) {
  size_t old = x.committed == MU_RUN_PAGES ? 0 : x.committed;
  size_t run = sizeof(struct mu_run);
  if (!commit_table(mu_arena.page_map, old, pages)) return false;
  if (!commit_table(mu_arena.extents, old * sizeof(struct mu_extent), pages * sizeof(struct mu_extent))) return false;
  if (!commit_table(mu_arena.runs, old / MU_RUN_PAGES * run, pages / MU_RUN_PAGES * run)) return false;
  if (!make_accessible(mu_page_address(x.committed), (pages - x.committed) << mu_arena.page_shift)) return false;
  x.committed = pages;
  /* release: whoever sees the limit sees the tables accessible */
  atomic_store_explicit(&mu_arena.limit, pages, memory_order_release);
  return true;
}

/* Grows in steps of an eighth of the heap, so that a large heap takes few calls and a small one little commit charge.
 */
MU_AT_START static bool commit(size_t pages) {
  if (pages <= x.committed) return true;
  if (pages > mu_arena.reserved) return false;
  size_t least = ((size_t)1 << 20) >> mu_arena.page_shift, most = ((size_t)64 << 20) >> mu_arena.page_shift;
  size_t step = mu_min(mu_max(x.committed / 8, least), most);
  size_t unit = step << mu_arena.page_shift >= MIN_HUGE_STEP ? MU_HUGE_BYTES >> mu_arena.page_shift : MU_RUN_PAGES;
  size_t want = mu_round_up(mu_max(x.committed + step, pages), mu_max(unit, MU_RUN_PAGES));
  if (want <= mu_arena.reserved && commit_to(want)) return true;
  want = mu_round_up(pages, MU_RUN_PAGES);
  return want <= mu_arena.reserved && commit_to(want);
}

/* ---- bins -------------------------------------------------------------------------------------------------------- */

static unsigned bin_of(size_t pages) {
  if (pages < EXACT_BINS) return (unsigned)pages;
  unsigned log = mu_log2(pages);
  return EXACT_BINS + (log - 6) * 4 + (unsigned)((pages >> (log - 2)) & 3);
}

static int kind_of(const struct mu_extent *m) {
  return m->state == MU_EXTENT_CLEAN;
}

MU_AT_START static void bin_insert(size_t page) {
  struct mu_extent *m = mu_extent_at(page);
  unsigned bin = bin_of(m->pages);
  uint32_t *head = &x.head[kind_of(m)][bin];
  m->prev = MU_NO_PAGE;
  m->next = *head;
  if (*head) mu_extent_at(*head)->prev = (uint32_t)page;
  *head = (uint32_t)page;
  x.nonempty[kind_of(m)][bin / 64] |= (uint64_t)1 << bin % 64;
}

MU_AT_START static void bin_remove(size_t page) {
  struct mu_extent *m = mu_extent_at(page);
  unsigned bin = bin_of(m->pages);
  uint32_t *head = &x.head[kind_of(m)][bin];
  if (m->prev)
    mu_extent_at(m->prev)->next = m->next;
  else
    *head = m->next;
  if (m->next) mu_extent_at(m->next)->prev = m->prev;
  if (!*head) x.nonempty[kind_of(m)][bin / 64] &= ~((uint64_t)1 << bin % 64);
}

static void age_insert(size_t page) {
  struct mu_extent *m = mu_extent_at(page);
  m->stamp = atomic_load_explicit(&mu_tick, memory_order_relaxed);
  m->older = x.newest;
  m->newer = MU_NO_PAGE;
  if (x.newest)
    mu_extent_at(x.newest)->newer = (uint32_t)page;
  else
    x.oldest = (uint32_t)page;
  x.newest = (uint32_t)page;
}

/* The rest of the oldest one: its stamp stays. */
static void age_insert_oldest(size_t page, uint32_t stamp) {
  struct mu_extent *m = mu_extent_at(page);
  m->stamp = stamp;
  m->newer = x.oldest;
  m->older = MU_NO_PAGE;
  *(x.oldest ? &mu_extent_at(x.oldest)->older : &x.newest) = (uint32_t)page;
  x.oldest = (uint32_t)page;
}

static void age_remove(size_t page) {
  struct mu_extent *m = mu_extent_at(page);
  *(m->older ? &mu_extent_at(m->older)->newer : &x.oldest) = m->newer;
  *(m->newer ? &mu_extent_at(m->newer)->older : &x.newest) = m->older;
}

static void forget(size_t page) {
  memset(mu_extent_at(page), 0, sizeof(struct mu_extent));
}

static void count_dirty(size_t pages, bool more) {
  if (more)
    atomic_fetch_add_explicit(&mu_dirty_pages, pages, memory_order_relaxed);
  else
    atomic_fetch_sub_explicit(&mu_dirty_pages, pages, memory_order_relaxed);
}

/* Takes a free extent off every list; its MiniHeaps are zero after. */
MU_AT_START static size_t take_off(size_t page) {
  struct mu_extent *m = mu_extent_at(page);
  size_t pages = m->pages;
  bin_remove(page);
  if (m->state == MU_EXTENT_DIRTY) {
    age_remove(page);
    count_dirty(pages, false);
  }
  if (pages > 1) forget(page + pages - 1);
  forget(page);
  return pages;
}

MU_AT_START static void record(size_t page, size_t pages, enum mu_state state) {
  struct mu_extent *m = mu_extent_at(page);
  m->state = (uint8_t)state;
  m->pages = (uint32_t)pages;
  if (pages > 1) {
    struct mu_extent *tail = mu_extent_at(page + pages - 1);
    tail->state = MU_EXTENT_TAIL;
    tail->pages = (uint32_t)pages;
  }
  bin_insert(page);
  if (state == MU_EXTENT_DIRTY) count_dirty(pages, true);
}

MU_AT_START static void put_on(size_t page, size_t pages, enum mu_state state) {
  record(page, pages, state);
  if (state == MU_EXTENT_DIRTY) age_insert(page);
}

/* The free extent of this state that ends just before `page`, or MU_NO_PAGE. */
MU_RACY static size_t before(size_t page, enum mu_state state) {
  struct mu_extent *last = mu_extent_at(page - 1);
  size_t first = mu_extent_state(last) == MU_EXTENT_TAIL ? page - last->pages : page - 1;
  return mu_extent_state(mu_extent_at(first)) == state ? first : MU_NO_PAGE;
}

MU_RACY MU_AT_START static void insert_merged(size_t page, size_t pages, enum mu_state state) {
  size_t left = page > MU_RUN_PAGES ? before(page, state) : MU_NO_PAGE, right = page + pages;
  if (left) {
    pages += take_off(left);
    page = left;
  }
  if (right < x.top && mu_extent_state(mu_extent_at(right)) == state) pages += take_off(right);
  put_on(page, pages, state);
}

/* ---- extents ----------------------------------------------------------------------------------------------------- */

/* Alignment is of addresses: the arena's base is aligned to a run and no more. */
static size_t align_page(size_t page, size_t align) {
  size_t base = (uintptr_t)mu_arena.base >> mu_arena.page_shift;
  return mu_round_up(base + page, align) - base;
}

static size_t aligned_in(size_t page, size_t pages, size_t align) {
  size_t at = align_page(page, align);
  return at + pages <= page + mu_extent_at(page)->pages ? at : MU_NO_PAGE;
}

static size_t find_in_bin(int kind, unsigned bin, size_t pages, size_t align) {
  int left = SCAN;
  for (size_t page = x.head[kind][bin]; page && left; page = mu_extent_at(page)->next, left--)
    if (aligned_in(page, pages, align)) return page;
  return MU_NO_PAGE;
}

MU_AT_START static size_t find(int kind, size_t pages, size_t align) {
  unsigned bin = bin_of(pages);
  uint64_t word = x.nonempty[kind][bin / 64] >> bin % 64 << bin % 64;
  for (unsigned w = bin / 64; w < BIN_WORDS; word = ++w < BIN_WORDS ? x.nonempty[kind][w] : 0)
    for (; word; word &= word - 1) {
      size_t page = find_in_bin(kind, w * 64 + (unsigned)__builtin_ctzll(word), pages, align);
      if (page) return page;
    }
  return MU_NO_PAGE;
}

MU_AT_START static size_t carve(size_t page, size_t pages, size_t align) {
  enum mu_state state = mu_extent_at(page)->state;
  size_t at = aligned_in(page, pages, align), end = page + take_off(page);
  if (at > page) put_on(page, at - page, state);
  if (end > at + pages) put_on(at + pages, end - at - pages, state);
  return at;
}

MU_AT_START static size_t from_top(size_t pages, size_t align) {
  size_t at = align_page(x.top, align);
  if (at + pages > mu_arena.reserved || !commit(at + pages)) return MU_NO_PAGE;
  size_t old = x.top;
  x.top = at + pages;
  if (at > old && !x.lost) insert_merged(old, at - old, MU_EXTENT_CLEAN);
  return at;
}

MU_AT_START size_t mu_extent_alloc(size_t pages, size_t align, bool *zeroed) {
  *zeroed = false;
  if (pages > mu_arena.reserved || align > mu_arena.reserved) return MU_NO_PAGE;
  mu_lock_take(&mu_extent_lock);
  size_t page = find(0, pages, align), at;
  *zeroed = page == MU_NO_PAGE;
  if (!page) page = find(1, pages, align);
  at = page ? carve(page, pages, align) : from_top(pages, align);
  mu_lock_release(&mu_extent_lock);
  return at;
}

void mu_extent_free(size_t page, size_t pages, bool clean) {
  mu_lock_take(&mu_extent_lock);
  if (MU_LIKELY(!x.lost)) insert_merged(page, pages, clean ? MU_EXTENT_CLEAN : MU_EXTENT_DIRTY);
  bool lost = x.lost;
  mu_lock_release(&mu_extent_lock);
  if (MU_UNLIKELY(lost)) mu_madvise(mu_page_address(page), pages << mu_arena.page_shift, MADV_DONTNEED);
}

MU_RACY bool mu_extent_grow(size_t page, size_t pages, size_t more, bool *zeroed) {
  bool grown = false;
  mu_lock_take(&mu_extent_lock);
  size_t next = page + pages;
  if (next == x.top) {
    grown = next + more <= mu_arena.reserved && commit(next + more);
    if (grown) x.top = next + more;
    *zeroed = true;
  } else if (next < x.top && !x.lost) {
    const struct mu_extent *m = mu_extent_at(next);
    enum mu_state state = mu_extent_state(m);
    grown = (state == MU_EXTENT_CLEAN || state == MU_EXTENT_DIRTY) && m->pages >= more;
    *zeroed = state == MU_EXTENT_CLEAN;
    if (grown) carve(next, more, 1);
  }
  mu_lock_release(&mu_extent_lock);
  return grown;
}

/* Metadata of what lies inside of a dropped range goes back with it: entries that are blank. */
static void drop_metadata(size_t page, size_t pages, mu_drop_fn drop) {
  char *from = (char *)&mu_arena.extents[page + 1], *to = (char *)&mu_arena.extents[page + pages - 1];
  from = (char *)mu_round_up((uintptr_t)from, mu_arena.page_size);
  to = (char *)mu_round_down((uintptr_t)to, mu_arena.page_size);
  if (to > from) drop(from, (size_t)(to - from));
}

enum { MIN_PART = 64 }; /* pages: an extent is not divided into less */

/* Takes the oldest extent off, or its end if more than `most` of it is there. */
static size_t take_oldest(size_t most, size_t *pages) {
  size_t page = x.oldest, rest;
  uint32_t stamp = mu_extent_at(page)->stamp;
  *pages = take_off(page);
  most = mu_max(most, MIN_PART);
  if (*pages <= most || (rest = *pages - most) < MIN_PART) return page;
  record(page, rest, MU_EXTENT_DIRTY);
  age_insert_oldest(page, stamp);
  *pages = most;
  return page + rest;
}

size_t mu_extent_purge(uint32_t tick, size_t max_pages, mu_drop_fn drop) {
  size_t done = 0, pages;
  while (done < max_pages) {
    mu_lock_take(&mu_extent_lock);
    size_t page = x.oldest;
    if (!page || (int32_t)(mu_extent_at(page)->stamp - tick) > 0) {
      mu_lock_release(&mu_extent_lock);
      break;
    }
    page = take_oldest(max_pages - done, &pages);
    mu_extent_at(page)->state = MU_EXTENT_BUSY; /* neighbours do not merge with it meanwhile */
    mu_lock_release(&mu_extent_lock);
    bool dropped = drop(mu_page_address(page), pages << mu_arena.page_shift);
    if (pages > 2) drop_metadata(page, pages, drop);
    mu_lock_take(&mu_extent_lock);
    forget(page);
    insert_merged(page, pages, dropped ? MU_EXTENT_CLEAN : MU_EXTENT_DIRTY);
    mu_lock_release(&mu_extent_lock);
    if (!dropped) break;
    done += pages;
  }
  return done;
}

/* What is free is on lists that may be half changed: it is left alone for good, like what becomes free from now on, but
 * for its memory. The rest of the reservation is there. */
void mu_extents_lost(void) {
  memset(x.head, 0, sizeof x.head);
  memset(x.nonempty, 0, sizeof x.nonempty);
  x.oldest = x.newest = MU_NO_PAGE;
  x.lost = true;
  atomic_store_explicit(&mu_dirty_pages, 0, memory_order_relaxed);
}

/* ---- validator --------------------------------------------------------------------------------------------------- */

struct census {
  size_t extents, pages;
};

/* Records between the first and the last page are blank, and no span is on these pages. */
static void validate_inside(size_t page, size_t pages) {
  MU_CHECK(pages > 0 && page >= MU_RUN_PAGES && pages <= x.top - page);
  for (size_t i = page; i < page + pages; i++) MU_CHECK(mu_arena.page_map[i] == 0);
  for (size_t i = page + 1; i + 1 < page + pages; i++) MU_CHECK(mu_extent_at(i)->state == MU_NONE);
  for (size_t r = page / MU_RUN_PAGES; r <= (page + pages - 1) / MU_RUN_PAGES; r++) MU_CHECK(!mu_arena.runs[r].in_use);
}

static void validate_free(size_t page, int kind, unsigned bin) {
  const struct mu_extent *m = mu_extent_at(page);
  size_t end = page + m->pages;
  MU_CHECK(m->state == (kind ? MU_EXTENT_CLEAN : MU_EXTENT_DIRTY));
  MU_CHECK(bin_of(m->pages) == bin);
  validate_inside(page, m->pages);
  const struct mu_extent *tail = mu_extent_at(end - 1);
  MU_CHECK(m->pages == 1 || (tail->state == MU_EXTENT_TAIL && tail->pages == m->pages));
  MU_CHECK(end == x.top || mu_extent_at(end)->state != m->state); /* else they would be one */
}

static void validate_bin(int kind, unsigned bin, struct census *all) {
  MU_CHECK((x.nonempty[kind][bin / 64] >> bin % 64 & 1) == (x.head[kind][bin] != MU_NO_PAGE));
  for (size_t page = x.head[kind][bin], last = MU_NO_PAGE; page; last = page, page = mu_extent_at(page)->next) {
    MU_CHECK(page < x.top && mu_extent_at(page)->prev == last);
    validate_free(page, kind, bin);
    all->extents++;
    all->pages += mu_extent_at(page)->pages;
    MU_CHECK(all->extents <= x.top);
  }
}

static void validate_ages(size_t extents) {
  size_t last = MU_NO_PAGE;
  for (size_t page = x.oldest; page; last = page, page = mu_extent_at(page)->newer, extents--) {
    const struct mu_extent *m = mu_extent_at(page);
    MU_CHECK(extents && page < x.top && m->state == MU_EXTENT_DIRTY && m->older == last);
    MU_CHECK(!last || (int32_t)(m->stamp - mu_extent_at(last)->stamp) >= 0);
  }
  MU_CHECK(extents == 0 && x.newest == last);
}

/* Every page is in a free extent, in a run or in a large allocation. */
static void validate_pages(const struct census *dirty, const struct census *clean) {
  size_t free_pages = 0, large_pages = 0, pages;
  for (size_t page = MU_RUN_PAGES; page < x.top; page += pages) {
    const struct mu_extent *m = mu_extent_at(page);
    bool is_free = m->state == MU_EXTENT_DIRTY || m->state == MU_EXTENT_CLEAN;
    if (m->state == MU_NONE) {
      MU_CHECK(page % MU_RUN_PAGES == 0 && mu_arena.runs[page / MU_RUN_PAGES].in_use);
      pages = MU_RUN_PAGES;
      for (size_t i = page; i < page + pages; i++) MU_CHECK(mu_extent_at(i)->state == MU_NONE);
      continue;
    }
    MU_CHECK(is_free || m->state == MU_LARGE);
    pages = m->pages;
    validate_inside(page, pages);
    MU_CHECK(is_free || pages == 1 || mu_extent_at(page + pages - 1)->state == MU_NONE);
    *(is_free ? &free_pages : &large_pages) += pages;
  }
  MU_CHECK(free_pages == dirty->pages + clean->pages);
  MU_CHECK(large_pages == atomic_load_explicit(&mu_large_pages, memory_order_relaxed));
}

void mu_arena_validate(bool quiet) {
  struct census free[2] = {{0, 0}, {0, 0}};
  MU_CHECK(x.top <= x.committed && x.committed <= mu_arena.reserved);
  MU_CHECK(mu_arena_limit() == x.committed || x.committed == MU_RUN_PAGES);
  for (int kind = 0; kind < 2; kind++)
    for (unsigned bin = 0; bin < BINS; bin++) validate_bin(kind, bin, &free[kind]);
  MU_CHECK(free[0].pages == atomic_load_explicit(&mu_dirty_pages, memory_order_relaxed));
  validate_ages(free[0].extents);
  if (quiet) validate_pages(&free[0], &free[1]);
}

/* ---- mappings and metadata --------------------------------------------------------------------------------------- */

bool mu_fresh_mapping(void *start, size_t len) {
  bool got = mu_mmap_over(start, len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (got) mu_madvise(start, len, MADV_NOHUGEPAGE);
  return got;
}

struct mu_lock mu_meta_lock = MU_LOCK_INIT(MU_RANK_LEAF);
static struct {
  char *at;
  size_t left;
} meta;

void mu_meta_lost(void) {
  meta.left = 0;
}

MU_AT_START void *mu_meta_alloc(size_t bytes) {
  bytes = mu_round_up(bytes, 64);
  mu_lock_take(&mu_meta_lock);
  if (bytes > meta.left) {
    size_t chunk = mu_max(mu_round_up(bytes, mu_arena.page_size), (size_t)1 << 17);
    int err;
    char *got = mu_mmap(NULL, chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
    meta.at = got;
    meta.left = got ? chunk : 0;
  }
  char *result = bytes <= meta.left ? meta.at : NULL;
  if (result) {
    meta.at += bytes;
    meta.left -= bytes;
  }
  mu_lock_release(&mu_meta_lock);
  return result;
}
