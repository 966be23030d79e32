/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GlobalHeap: a lock, the runs and the spans of each size class. Threads claim slots from it and give them back in
 * batches. A set bit of a span's bitmap means: the program's, or in some thread's ShuffleVector.
 */
#ifndef MU_GLOBAL_HEAP_H
#define MU_GLOBAL_HEAP_H

#include "src/arena.h"
#include "src/options.h"

/* Open spans with room, by eighths of occupancy; then empty ones that may be resident, newest first; then those that
 * are not. */
enum { MU_EMPTY_BIN = MU_FILL_BINS, MU_CLEAN_BIN, MU_BINS };

/* Free slots that stay claimed, for the next thread that needs some: they change hands by the batch, without a look at
 * any bitmap. The mesher takes out what lay there unused for a tick. */
struct mu_transfer_cache {
  void **slots;        /* the newest last; NULL until first needed */
  uint32_t count, low; /* low: the least it held since the last tick */
};

struct mu_class_heap {
  struct mu_lock lock;
  struct mu_transfer_cache cache;
  uint32_t bins[MU_BINS];
  uint32_t oldest_empty; /* the last of MU_EMPTY_BIN */
  uint32_t runs;         /* list of runs, by run number */
  uint32_t run_count;
  uint32_t spare_runs; /* runs with no live slot */
  /* Sums over open, closed and meshed spans. */
  size_t live_slots;
  size_t used_spans; /* live > 0 */
  size_t meshed_runs;
  size_t meshed_slots;              /* live slots of meshed spans */
  uint64_t span_allocs, span_frees; /* spans that came to life, that died */
  uint32_t touched_empty;           /* empty spans that may be resident */
  bool lost;                        /* see mu_class_lost */
  uint64_t ops;                     /* claims and give-backs: for telling whether anything happens */
} __attribute__((aligned(64)));

extern struct mu_class_heap mu_class_heaps[MU_CLASSES];
extern _Atomic uint64_t mu_spans_in_use, mu_spans_hwm;
/* Mappings that meshed runs use, an upper bound. */
extern _Atomic uint64_t mu_mesh_mappings;
/* Pages of spans that are meshed. */
extern _Atomic uint64_t mu_pages_shown;

void mu_global_heap_init(void);

/*
 * A slot that is claimed may carry a mark: its memory is still as the kernel made it, all zeros. Only slots of a page
 * and more do. No address of the program's has this bit set.
 */
static const uintptr_t mu_fresh_mark = (uintptr_t)1 << 63;
static inline bool mu_is_fresh(const void *slot) {
  return (uintptr_t)slot & mu_fresh_mark;
}
static inline void *mu_unmarked(void *slot) {
  return (void *)((uintptr_t)slot & ~mu_fresh_mark);
}

/* Claims up to n free slots of the class into out, some of them marked. Returns how many; 0 when
 * memory is out. Calls nobody back: once the slots are where they belong, the caller is to call mu_after_claim. */
uint32_t mu_claim(unsigned size_class, void **out, uint32_t n, uint64_t *rng, bool *grown);

/* Gives slots of the class back, marked or not. Each is checked: aborts on one that is not a live slot. */
void mu_give_back(unsigned size_class, void *const *slots, uint32_t n);

/* As the two above, by way of the transfer cache. Takes up to `most` slots if the cache has them, else claims up to n.
 * After mu_put, the caller is to call mu_note_activity. */
uint32_t mu_take(unsigned size_class, void **out, uint32_t most, uint32_t n, uint64_t *rng, bool *grown);
void mu_put(unsigned size_class, void *const *slots, uint32_t n);

/* Gives back what the transfer cache had no use for since the last call, or everything. Returns what is left there. */
uint32_t mu_cache_trim(unsigned size_class, bool everything);

/* Slots that the program has, or its threads. */
MU_RACY static inline size_t mu_class_live(const struct mu_class_heap *h) {
  size_t live = h->live_slots, cached = h->cache.count; /* of two moments, when read without the lock */
  return live > cached ? live - cached : 0;
}

/* The run that page belongs to; in_use tells whether it holds small objects. */
static inline struct mu_run *mu_run_of(size_t page) {
  return &mu_arena.runs[page / MU_RUN_PAGES];
}
/* First page of the span that holds this page of a run in use. */
static inline size_t mu_span_page(const struct mu_run *run, size_t page) {
  return page & ~((size_t)mu_classes[run->size_class].span_pages - 1);
}

/* Where a pointer into a run in use points: the door from a user's pointer to metadata. */
struct mu_place {
  size_t page; /* of the span */
  struct mu_mini_heap *span;
  uint32_t slot;
  bool exact; /* points to the slot's first byte */
};
static inline struct mu_place mu_place_of(const struct mu_run *run, const void *p) {
  struct mu_place at;
  const struct mu_size_class *k = &mu_classes[run->size_class];
  at.page = mu_span_page(run, mu_page_of(p));
  size_t offset = (size_t)((const char *)p - (const char *)mu_page_address(at.page));
  at.span = mu_mini_heap(at.page);
  at.slot = mu_slot_of(k, offset);
  at.exact = (size_t)at.slot * k->size == offset && at.slot < k->slots;
  return at;
}

/* Marks the span of a live slot: an object of it asked for a large alignment. Counts an exemption: 0, or EINVAL when p
 * is not a live slot, EBUSY when its span is meshed. Both last until the span is empty. */
void mu_span_mark_aligned(const void *p);
int mu_span_exempt(const void *p);
/* The same for whatever small objects there are in the range, meshed or not. Under the pass lock, or it may be too late
 * for a pass that is under way; gives up on a lock that is not to be had, since the caller may be a signal handler. */
void mu_spans_exempt(const void *start, size_t len);

/* What p, which points into a run, points to: a slot that is the program's or some thread's, one of nobody's, or no
 * slot at all. */
enum mu_slot_is { MU_SLOT_NONE, MU_SLOT_FREE, MU_SLOT_LIVE };
enum mu_slot_is mu_slot_is(const void *p);

/* ---- for the mesher; all under the class lock, which it takes with these ---- */

static inline void mu_class_lock(unsigned c) {
  mu_lock_take(&mu_class_heaps[c].lock);
}
static inline void mu_class_unlock(unsigned c) {
  mu_lock_release(&mu_class_heaps[c].lock);
}

/* Takes the run's spans off every list, so that none is claimed from. */
void mu_run_close(uint32_t run);
/*
 * Ends a pass over a closed run: the spans of units u with bit u of `meshed` set are MESHED, at where[u]; units with
 * bit u of `fresh` set, which have no live slot, get fresh memory and are open again; what was CLOSED otherwise opens.
 * unit_pages as in the pass.
 */
void mu_run_settle(uint32_t run, uint32_t unit_pages, uint64_t meshed, uint64_t fresh,
                   const struct mu_packed_place *where);
/* The place of a meshed unit; {0, 0} for one that is not. */
struct mu_packed_place mu_unit_place(uint32_t run, unsigned unit_pages, unsigned unit);
/* Before a pass over a meshed run: gives it its whole table again. False when there is no memory for it. */
bool mu_run_thicken(uint32_t run);
/* Begins another pass over a meshed run: it is not given back meanwhile. */
void mu_run_hold(uint32_t run);

/* Gives back meshed runs without a live slot for which the kernel had no mapping at the time; those of which little is
 * left get a smaller table. Locks itself. */
void mu_reap_runs(unsigned size_class);

/* Empty open spans whose pages may be resident: takes up to `max` of them off the lists (state CLOSED), for dropping.
 * mu_empty_return puts them back, as not resident when `dropped`. Locks itself. */
uint32_t mu_empty_take(unsigned size_class, uint32_t *pages, uint32_t max, uint32_t before_tick);
void mu_empty_return(unsigned size_class, const uint32_t *pages, uint32_t n, bool dropped);

/* Idle pages: those of a span with live slots that hold nothing of any of them. Finds them in a run of spans of several
 * pages, none of which was claimed from since `before_tick`, or whenever that was (any_age). */
enum mu_idle { MU_IDLE_NONE, MU_IDLE_TOO_YOUNG, MU_IDLE_LOOK };
/* Whether it is worth looking; without a lock, so it may be wrong. */
enum mu_idle mu_idle_might_be(uint32_t run, uint32_t before_tick, bool any_age);
/* Takes spans with idle pages, of which some are in `present`, off the lists (state CLOSED), and returns all their idle
 * pages (bit i: page i of the run). mu_idle_return puts them back. Each locks itself. */
uint64_t mu_idle_take(uint32_t run, uint64_t present);
void mu_idle_return(uint32_t run, uint64_t pages, bool dropped);

/* Checks every invariant of the class; aborts with a message. The lock is held. */
void mu_class_validate(unsigned size_class);

/* All class locks, ascending. */
void mu_global_lock_all(void);
void mu_global_unlock_all(void);
/* In a forked child, where another thread was at work under the lock: its spans are left alone. What is freed from now
 * on serves again by way of the transfer cache alone, and what does not fit there is lost. */
void mu_class_lost(unsigned size_class);

/* Called, without locks, when the heap has grown by a run (for tests, by MESH_UFFD_TEST_EAGER: at each claim): the
 * mesher may start. Set once. */
extern void (*mu_on_growth)(size_t pages);
/* Set while the mesher sleeps until something changes; then mu_on_activity is called, without locks. */
extern _Atomic uint32_t mu_mesher_listens;
extern void (*mu_on_activity)(void);
static inline void mu_note_activity(void) {
  if (MU_UNLIKELY(atomic_load_explicit(&mu_mesher_listens, memory_order_relaxed))) mu_on_activity();
}
/* May allocate, and come here again. */
static inline void mu_after_claim(bool grown) {
  mu_note_activity();
  if (MU_UNLIKELY(grown | mu_options.eager) && mu_on_growth) mu_on_growth(grown ? MU_RUN_PAGES : 0);
}

#endif
