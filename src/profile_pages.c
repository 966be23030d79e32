/* SPDX-License-Identifier: Apache-2.0 */
#include "src/profile_pages.h"
#include "src/global_heap.h"
#include "src/large.h"
#include "src/pass.h"
#include "src/sys.h"
#include <fcntl.h>
#include <sys/mman.h>

enum { COUNT_BITS = 20 }; /* 256 slots of a page, of at most 2^12 units that show it */

static uint64_t count_of(uint64_t entry) {
  return entry & (((uint64_t)1 << COUNT_BITS) - 1);
}

/* Never 0: files are counted from 1. A file has less than 2^12 units, a unit at most 64 pages. */
static uint64_t key_of(struct mu_packed_place at, unsigned page) {
  return (uint64_t)at.file << 19 | (uint64_t)(at.unit & 0x1fff) << 6 | page;
}

static uint64_t *entry_of(const struct mu_pages *pages, uint64_t key) {
  size_t i = (size_t)(key * 0x9E3779B97F4A7C15U >> 20) & (pages->slots - 1);
  while (pages->shared[i] && pages->shared[i] >> COUNT_BITS != key) i = (i + 1) & (pages->slots - 1);
  return &pages->shared[i];
}

/* Live slots that have a byte on the i-th page of a span. */
static unsigned live_on(const struct mu_size_class *k, const struct mu_mini_heap *span, unsigned i) {
  size_t from = (size_t)i << mu_arena.page_shift, to = from + mu_arena.page_size;
  uint32_t last = (uint32_t)mu_min((to - 1) / k->size, k->slots - 1U), n = 0;
  for (uint32_t s = (uint32_t)(from / k->size); s <= last; s++) n += mu_bit(span->bitmap, s);
  return n;
}

/* ---- pages that were stored to after they were meshed ------------------------------------------------------------ */

/* Bit i: page i of the run is not the mesh file's. Where that cannot be asked: none is. */
static uint64_t private_pages(const struct mu_pages *pages, uint32_t r) {
  uint64_t entries[MU_RUN_PAGES], mask = 0;
  uint64_t at = ((uintptr_t)mu_page_address((size_t)r * MU_RUN_PAGES) >> mu_arena.page_shift) * sizeof *entries;
  if (pages->pagemap < 0 || mu_pread(pages->pagemap, entries, sizeof entries, at) != sizeof entries) return 0;
  for (unsigned i = 0; i < MU_RUN_PAGES; i++) {
    bool present = entries[i] >> 63, swapped = entries[i] >> 62 & 1, of_file = entries[i] >> 61 & 1;
    if ((present || swapped) && !of_file) mask |= (uint64_t)1 << i;
  }
  return mask;
}

/* The packed page that page i of the run shows, or 0. */
static uint64_t shown_by(uint32_t r, unsigned i, uint64_t private) {
  const struct mu_run *run = &mu_arena.runs[r];
  if (!run->meshed || private >> i & 1) return 0;
  unsigned unit_pages = 1U << run->unit_log;
  struct mu_packed_place at = mu_unit_place(r, unit_pages, i / unit_pages);
  return at.file ? key_of(at, i % unit_pages) : 0;
}

static void count_run(const struct mu_pages *pages, uint32_t r) {
  const struct mu_size_class *k = &mu_classes[mu_arena.runs[r].size_class];
  uint64_t private = private_pages(pages, r);
  for (unsigned i = 0; i < MU_RUN_PAGES; i++) {
    uint64_t key = shown_by(r, i, private);
    if (!key) continue;
    const struct mu_mini_heap *span = mu_mini_heap((size_t)r * MU_RUN_PAGES + i);
    uint64_t *entry = entry_of(pages, key);
    *entry = key << COUNT_BITS | (count_of(*entry) + live_on(k, span, i % k->span_pages));
  }
}

/* Locks the class of the run; false, unlocked, when it holds no small objects (any more). */
static bool lock_run(const struct mu_run *run) {
  unsigned c = __atomic_load_n(&run->size_class, __ATOMIC_RELAXED);
  if (!__atomic_load_n(&run->in_use, __ATOMIC_RELAXED) || !c || c >= MU_CLASSES) return false;
  mu_class_lock(c);
  if (run->in_use && run->size_class == c) return true;
  mu_class_unlock(c);
  return false;
}

static void count_all(const struct mu_pages *pages) {
  for (uint32_t r = 1; r < mu_arena_limit() / MU_RUN_PAGES; r++) {
    struct mu_run *run = &mu_arena.runs[r];
    if (!lock_run(run)) continue;
    unsigned c = run->size_class;
    if (run->meshed) count_run(pages, r);
    mu_class_unlock(c);
  }
}

bool mu_pages_begin(struct mu_pages *pages) {
  int err;
  mu_pass_lock();
  size_t shown = atomic_load_explicit(&mu_pages_shown, memory_order_relaxed);
  pages->slots = (size_t)1 << (mu_log2(shown + 1) + 2); /* more than twice as many; only fewer can come */
  pages->pagemap = mu_open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  pages->shared = mu_mmap(NULL, pages->slots * sizeof *pages->shared, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
  if (pages->shared) {
    if (shown) count_all(pages);
    return true;
  }
  if (pages->pagemap >= 0) mu_close(pages->pagemap);
  mu_pass_unlock();
  return false;
}

void mu_pages_end(struct mu_pages *pages) {
  mu_munmap(pages->shared, pages->slots * sizeof *pages->shared);
  if (pages->pagemap >= 0) mu_close(pages->pagemap);
  mu_pass_unlock();
}

/* ---- an object --------------------------------------------------------------------------------------------------- */

static double held_in_run(const struct mu_pages *pages, uint32_t r, const void *p) {
  const struct mu_run *run = &mu_arena.runs[r];
  const struct mu_size_class *k = &mu_classes[run->size_class];
  struct mu_place at = mu_place_of(run, p);
  if (!at.exact || !mu_bit(at.span->bitmap, at.slot)) return 0;
  uint64_t private = run->meshed ? private_pages(pages, r) : 0;
  size_t first = (size_t)at.slot * k->size >> mu_arena.page_shift;
  size_t last = ((size_t)at.slot * k->size + k->size - 1) >> mu_arena.page_shift;
  double held = 0;
  for (size_t i = first; i <= last; i++) {
    uint64_t key = shown_by(r, (unsigned)((at.page + i) % MU_RUN_PAGES), private);
    uint64_t sharers = key ? count_of(*entry_of(pages, key)) : 0, own = live_on(k, at.span, (unsigned)i);
    held += (double)mu_arena.page_size /
            (double)mu_max(sharers, own); /* some may have been freed since they were counted */
  }
  return held;
}

double mu_pages_held(const struct mu_pages *pages, const void *p, size_t size) {
  size_t page = mu_page_of(p);
  if (page >= mu_arena_limit()) return 0;
  uint32_t r = (uint32_t)(page / MU_RUN_PAGES);
  struct mu_run *run = &mu_arena.runs[r];
  if (!lock_run(run)) return (double)(mu_pages_for(size) << mu_arena.page_shift); /* an extent of its own */
  unsigned c = run->size_class;
  double held = held_in_run(pages, r, p);
  mu_class_unlock(c);
  return held;
}
