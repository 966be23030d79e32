/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arena: one reservation that every allocation comes from, with the page map and the tables of MiniHeaps and runs
 * beside it. Grows by making more of the reservation accessible; hands out extents of pages.
 */
#ifndef MU_ARENA_H
#define MU_ARENA_H

#include "src/lock.h"
#include "src/mini_heap.h"
#include "src/size_class.h"
#include <string.h>

/* What is known of a run. Under the lock of its class, but for state and size_class, which are stable while any object
 * of it is live. */
struct mu_run {
  char *spans;    /* table of MiniHeaps, or a thin one */
  uint8_t in_use; /* 1: a run of small objects */
  uint8_t size_class;
  uint8_t meshed;      /* 1: its spans are meshed (some may be open again) */
  uint8_t closed;      /* 1: in a pass */
  uint8_t unit_log;    /* meshed: log2 of a unit's pages */
  uint8_t failures;    /* passes over it that failed, for backing off */
  uint16_t used;       /* spans with live > 0 */
  uint32_t next, prev; /* run numbers: the class's runs */
  uint32_t stamp;      /* tick of the last claim or give-back */
  uint32_t live;       /* slots, sum over its spans */
  uint32_t not_before; /* tick before which it is left alone */
  uint32_t mappings;   /* meshed: how many it uses */
  uint32_t forks;      /* mu_forks when its pages were last known to be this process's alone */
  uint8_t thin;        /* 0, or the entries of the thin table that stands for the whole one (thin_table.h) */
  uint8_t reserved[3];
  uint64_t fresh; /* a run that is one span: slots whose memory nobody has had since the kernel made it */
  uint32_t trimmed_live, trimmed; /* live, and the tick, when its idle pages were dropped last; 0: never */
  /* Records of the extents that begin at its first page and end at its last, as most do. Under the extent lock. */
  struct mu_extent edges[2];
};
_Static_assert(sizeof(struct mu_run) == 128, "what one run costs beside its MiniHeaps; half of it is for extents");

struct mu_arena {
  char *base;
  _Atomic size_t limit; /* pages below this have their page map and tables; grows only */
  unsigned page_shift;
  uint8_t *page_map;
  struct mu_extent *extents; /* by page number; those of the first and the last page of a run are with the run */
  char *span_tables;         /* region for the MiniHeaps of runs */
  size_t span_tables_bytes;
  struct mu_run *runs;
  size_t page_size;
  size_t reserved; /* pages */
};

extern struct mu_arena mu_arena;
extern struct mu_lock mu_extent_lock;

/* Once, before anything else. False when not even a minimal reservation can be had. */
bool mu_arena_init(void);

static inline void *mu_page_address(size_t page) {
  return mu_arena.base + (page << mu_arena.page_shift);
}
static inline struct mu_extent *mu_extent_at(size_t page) {
  size_t in_run = page % MU_RUN_PAGES;
  if (in_run == 0) return &mu_arena.runs[page / MU_RUN_PAGES].edges[0];
  if (in_run == MU_RUN_PAGES - 1) return &mu_arena.runs[page / MU_RUN_PAGES].edges[1];
  return &mu_arena.extents[page];
}
/* A run's record as it is made, but for the extents' part, which is not its own. */
static inline void mu_run_clear(struct mu_run *run) {
  memset(run, 0, offsetof(struct mu_run, edges));
}
/* Who has an allocation writes its state without the extent lock; who holds that may look at it, as a neighbour, and
 * whatever he sees is not free. */
static inline enum mu_state mu_extent_state(const struct mu_extent *m) {
  return (enum mu_state)__atomic_load_n(&m->state, __ATOMIC_RELAXED);
}
static inline void mu_extent_set_state(struct mu_extent *m, enum mu_state state) {
  __atomic_store_n(&m->state, (uint8_t)state, __ATOMIC_RELAXED);
}
/* Bytes of the table of MiniHeaps of a run of the class. */
static inline size_t mu_table_bytes(unsigned c) {
  return (size_t)mu_classes[c].meta * mu_classes[c].spans_per_run;
}
/* Bytes before the entries of a thin table: for each span of the run the number of its entry, or 0. */
static inline size_t mu_thin_index_bytes(const struct mu_size_class *k) {
  return mu_round_up(k->spans_per_run, sizeof(uint64_t));
}
/* What stands for a span without an entry: meshed, no live slot. Not to be written to. */
extern const union mu_covered_span {
  struct mu_mini_heap span;
  uint64_t words[sizeof(struct mu_mini_heap) / 8 + MU_MAX_WORDS];
} mu_covered_span;

static inline struct mu_mini_heap *mu_thin_mini_heap(const struct mu_run *run, const struct mu_size_class *k,
                                                     size_t span) {
  unsigned entry = (uint8_t)run->spans[span];
  const void *at = &mu_covered_span;
  if (entry) at = run->spans + mu_thin_index_bytes(k) + (entry - 1) * (size_t)k->meta;
  return (struct mu_mini_heap *)(uintptr_t)at;
}
/* The MiniHeap of the span that page belongs to, in a run in use. */
static inline struct mu_mini_heap *mu_mini_heap(size_t page) {
  const struct mu_run *run = &mu_arena.runs[page / MU_RUN_PAGES];
  const struct mu_size_class *k = &mu_classes[run->size_class];
  size_t span = (page % MU_RUN_PAGES) >> k->span_shift;
  if (MU_UNLIKELY(run->thin)) return mu_thin_mini_heap(run, k, span);
  return (struct mu_mini_heap *)(void *)(run->spans + span * k->meta);
}
/* The page number of any address; one outside the arena gives a number past its limit. */
static inline size_t mu_page_of(const void *p) {
  return ((uintptr_t)p - (uintptr_t)mu_arena.base) >> mu_arena.page_shift;
}
static inline size_t mu_arena_limit(void) {
  /* relaxed: a thread that holds a pointer into the arena has it from one that saw the limit grow */
  return atomic_load_explicit(&mu_arena.limit, memory_order_relaxed);
}
static inline size_t mu_pages_for(size_t bytes) {
  return (bytes + mu_arena.page_size - 1) >> mu_arena.page_shift;
}

/*
 * A range of `pages` pages whose address is a multiple of `align` pages (a power of two). Returns its first page, or
 * MU_NO_PAGE when memory is out. *zeroed says whether it reads as zeros. Takes the extent lock.
 */
size_t mu_extent_alloc(size_t pages, size_t align, bool *zeroed);
/* Gives back a range. clean: nothing of it is resident and it is private anonymous memory. */
void mu_extent_free(size_t page, size_t pages, bool clean);
/* Makes [page, page + pages) longer by `more` pages in place, if what follows is free. */
bool mu_extent_grow(size_t page, size_t pages, size_t more, bool *zeroed);

/* Drops free extents that became dirty at or before `tick`, the oldest first, until `max_pages` are done; a large one
 * in parts. Returns pages dropped. `drop` makes ranges read as zeros; what it fails for stays dirty, as young as can
 * be. */
typedef bool (*mu_drop_fn)(void *start, size_t len);
size_t mu_extent_purge(uint32_t tick, size_t max_pages, mu_drop_fn drop);

/* Checks every invariant of free memory; aborts with a message. quiet: nobody allocates, frees or purges meanwhile, so
 * all other memory must be accounted for, too. The extent lock is held. */
void mu_arena_validate(bool quiet);

/* To be called before any part of the arena is dropped: what the heap grew by last gets no more huge pages if that is
 * some of it. Takes the extent lock. */
void mu_extents_dropping(const void *start, size_t len);

/* Pages of free extents that may be resident; pages in large allocations. */
extern _Atomic size_t mu_dirty_pages, mu_large_pages;
/* The mesher's clock, for stamps: ticks of about 100 ms. */
extern _Atomic uint32_t mu_tick;

/* How often this process was forked: pages from before stay shared, as the kernel sees it, until they are written. */
extern _Atomic uint32_t mu_forks;

/* Memory for the library's own structures, zeroed, never given back; NULL when out. */
void *mu_meta_alloc(size_t bytes);
extern struct mu_lock mu_meta_lock;

/* In a forked child, where another thread was at work under the lock: what it may have half changed is not used any
 * more. */
void mu_meta_lost(void);
void mu_extents_lost(void);

/* Replaces a range by fresh anonymous memory, merging with its neighbours. False: left as it was. */
bool mu_fresh_mapping(void *start, size_t len);

#endif
