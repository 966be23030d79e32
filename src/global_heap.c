/* SPDX-License-Identifier: Apache-2.0 */
#include "src/global_heap.h"
#include "src/huge.h"
#include "src/log.h"
#include "src/mesh_files.h"
#include "src/rng.h"
#include "src/span_table.h"
#include "src/sys.h"
#include "src/thin_table.h"
#include <errno.h>
#include <string.h>

struct mu_class_heap mu_class_heaps[MU_CLASSES];
_Atomic uint64_t mu_spans_in_use, mu_spans_hwm;
_Atomic uint64_t mu_mesh_mappings, mu_pages_shown;
MU_EARLY void (*mu_on_growth)(size_t pages);
MU_EARLY void (*mu_on_activity)(void);
MU_EARLY _Atomic uint32_t mu_mesher_listens;

MU_AT_START void mu_global_heap_init(void) {
#ifdef MU_DEBUG /* else nobody looks at ranks, and a small process has no page for classes that it does not use */
  for (unsigned c = 0; c < MU_CLASSES; c++) mu_class_heaps[c].lock.rank = MU_RANK_CLASS + c;
#endif
}

static uint32_t tick_now(void) {
  return atomic_load_explicit(&mu_tick, memory_order_relaxed);
}

/* ---- bins -------------------------------------------------------------------------------------------------------- */

/* Which list an open span belongs on: by eighths of occupancy, so that the fullest are taken first. */
static uint8_t bin_for(const struct mu_size_class *k, const struct mu_mini_heap *span) {
  if (span->live == k->slots) return MU_NO_BIN;
  if (span->live == 0) return span->flags & MU_MH_TOUCHED ? MU_EMPTY_BIN : MU_CLEAN_BIN;
  return (uint8_t)(span->live * k->bin_magic >> 24);
}

MU_AT_START static void unlist(struct mu_class_heap *h, size_t page) {
  struct mu_mini_heap *m = mu_mini_heap(page);
  if (m->bin == MU_NO_BIN) return;
  if (m->prev)
    mu_mini_heap(m->prev)->next = m->next;
  else
    h->bins[m->bin] = m->next;
  if (m->next)
    mu_mini_heap(m->next)->prev = m->prev;
  else if (m->bin == MU_EMPTY_BIN)
    h->oldest_empty = m->prev;
  m->bin = MU_NO_BIN;
}

MU_AT_START static void enlist(struct mu_class_heap *h, size_t page, uint8_t bin) {
  struct mu_mini_heap *m = mu_mini_heap(page);
  m->bin = bin;
  if (bin == MU_NO_BIN) return;
  m->prev = MU_NO_PAGE;
  m->next = h->bins[bin];
  if (m->next)
    mu_mini_heap(m->next)->prev = (uint32_t)page;
  else if (bin == MU_EMPTY_BIN)
    h->oldest_empty = (uint32_t)page;
  if (bin == MU_EMPTY_BIN) m->stamp = (uint16_t)tick_now();
  h->bins[bin] = (uint32_t)page;
}

MU_AT_START static void rebin(struct mu_class_heap *h, const struct mu_size_class *k, size_t page) {
  struct mu_mini_heap *m = mu_mini_heap(page);
  uint8_t bin = bin_for(k, m);
  if (bin == m->bin) return;
  unlist(h, page);
  enlist(h, page, bin);
}

/* ---- a span comes to life and dies ------------------------------------------------------------------------------- */

MU_AT_START static void count_spans(struct mu_class_heap *h, bool born) {
  if (!born) {
    h->used_spans--;
    h->span_frees++;
    atomic_fetch_sub_explicit(&mu_spans_in_use, 1, memory_order_relaxed);
    return;
  }
  h->used_spans++;
  h->span_allocs++;
  uint64_t now = atomic_fetch_add_explicit(&mu_spans_in_use, 1, memory_order_relaxed) + 1;
  /* A racing maximum may be missed by a span or two; it is a statistic. */
  if (now > atomic_load_explicit(&mu_spans_hwm, memory_order_relaxed))
    atomic_store_explicit(&mu_spans_hwm, now, memory_order_relaxed);
}

MU_AT_START static void span_born(struct mu_class_heap *h, struct mu_run *run, struct mu_mini_heap *span) {
  count_spans(h, true);
  if (span->flags & MU_MH_TOUCHED) {
    h->touched_empty--;
  } else {
    span->flags |= MU_MH_TOUCHED;
    run->fresh = ~(uint64_t)0; /* read only where the run is this one span */
  }
  if (run->used++ == 0) h->spare_runs--;
}

static void span_died(struct mu_class_heap *h, struct mu_run *run, struct mu_mini_heap *span) {
  count_spans(h, false);
  span->exempt = 0;
  span->flags &= (uint8_t)~MU_MH_ALIGNED;
  if (span->state == MU_SPAN_OPEN || span->state == MU_SPAN_CLOSED) h->touched_empty++;
  if (--run->used == 0) h->spare_runs++;
}

/* Pages that show a packed unit for the sake of their own objects. */
static void count_shown(const struct mu_size_class *k, struct mu_mini_heap *span, bool shown) {
  bool was = span->state == MU_SPAN_MESHED && !(span->flags & MU_MH_COVERED);
  atomic_fetch_add_explicit(&mu_pages_shown, (uint64_t)k->span_pages * shown - (uint64_t)k->span_pages * was,
                            memory_order_relaxed);
}

/* ---- runs -------------------------------------------------------------------------------------------------------- */

MU_AT_START static void run_link(struct mu_class_heap *h, uint32_t r) {
  struct mu_run *run = &mu_arena.runs[r];
  run->prev = 0;
  run->next = h->runs;
  if (run->next) mu_arena.runs[run->next].prev = r;
  h->runs = r;
  h->run_count++;
}

static void run_unlink(struct mu_class_heap *h, uint32_t r) {
  struct mu_run *run = &mu_arena.runs[r];
  *(run->prev ? &mu_arena.runs[run->prev].next : &h->runs) = run->next;
  if (run->next) mu_arena.runs[run->next].prev = run->prev;
  h->run_count--;
}

MU_AT_START static void map_pages(uint32_t r, uint8_t value) {
  uint8_t *map = &mu_arena.page_map[(size_t)r * MU_RUN_PAGES];
  /* relaxed bytes: a thread that reads the old value takes the other way, which is right too (see free) */
  for (unsigned i = 0; i < MU_RUN_PAGES; i++) __atomic_store_n(&map[i], value, __ATOMIC_RELAXED);
}

MU_AT_START static bool run_create(struct mu_class_heap *h, unsigned c) {
  const struct mu_size_class *k = &mu_classes[c];
  bool zeroed;
  size_t page = mu_extent_alloc(MU_RUN_PAGES, MU_RUN_PAGES, &zeroed);
  if (!page) return false;
  uint32_t r = (uint32_t)(page / MU_RUN_PAGES);
  struct mu_run *run = &mu_arena.runs[r];
  char *spans = mu_span_table_alloc(c);
  if (!spans) {
    mu_extent_free(page, MU_RUN_PAGES, zeroed);
    return false;
  }
  run->spans = spans;
  run->in_use = 1;
  run->size_class = (uint8_t)c;
  run->stamp = tick_now();
  run->forks = zeroed ? atomic_load_explicit(&mu_forks, memory_order_relaxed) : UINT32_MAX;
  for (size_t at = page + MU_RUN_PAGES; at > page;) {
    at -= k->span_pages;
    struct mu_mini_heap *span = mu_mini_heap(at);
    span->state = MU_SPAN_OPEN;
    MU_NOT_ONE_CONSTANT();
    span->bin = MU_NO_BIN;
    if (!zeroed) {
      span->flags = MU_MH_TOUCHED;
      h->touched_empty++;
    }
    enlist(h, at, bin_for(k, span));
  }
  map_pages(r, (uint8_t)c);
  run_link(h, r);
  h->spare_runs++;
  return true;
}

static void free_table(const struct mu_run *run) {
  if (run->thin)
    mu_thin_table_free(&mu_classes[run->size_class], run->spans, run->thin);
  else
    mu_span_table_free(run->size_class, run->spans);
}

/* A run with no live slot goes back to the arena. One that was meshed first gets fresh memory; if the kernel refuses,
 * the run stays as it is, and is tried again with the next pass (mu_reap_runs). */
static bool run_destroy(struct mu_class_heap *h, uint32_t r) {
  struct mu_run *run = &mu_arena.runs[r];
  const struct mu_size_class *k = &mu_classes[run->size_class];
  size_t page = (size_t)r * MU_RUN_PAGES;
  bool was_meshed = run->meshed;
  if (was_meshed && !mu_fresh_mapping(mu_page_address(page), MU_RUN_PAGES * mu_arena.page_size)) return false;
  for (unsigned u = 0; was_meshed && u < (unsigned)MU_RUN_PAGES >> run->unit_log; u++) {
    struct mu_packed_place at = mu_unit_place(r, 1U << run->unit_log, u);
    if (at.file) mu_file_unref(at.file);
  }
  bool touched = false;
  for (size_t at = page; at < page + MU_RUN_PAGES; at += k->span_pages) {
    struct mu_mini_heap *span = mu_mini_heap(at);
    if (span->state == MU_SPAN_MESHED) {
      count_shown(k, span, false);
    } else if (span->flags & MU_MH_TOUCHED) {
      touched = true;
      h->touched_empty--;
    }
    unlist(h, at);
  }
  map_pages(r, 0);
  run_unlink(h, r);
  h->spare_runs--;
  if (was_meshed) h->meshed_runs--;
  if (run->mappings) atomic_fetch_sub_explicit(&mu_mesh_mappings, run->mappings, memory_order_relaxed);
  free_table(run);
  mu_run_clear(run);
  /* A huge page is resident as a whole once anything of it was touched. */
  touched = touched || mu_huge_in(mu_page_address(page), MU_RUN_PAGES * mu_arena.page_size);
  mu_extent_free(page, MU_RUN_PAGES, was_meshed || !touched);
  return true;
}

/* ---- claim ------------------------------------------------------------------------------------------------------- */

/*
 * Claims up to n free bits of a span, upwards from where the last claim ended, and when it was empty from a random one,
 * so that no pattern of the program's shows in the bitmap. What is allocated one after the other shall lie side by
 * side, or caches and prefetching are of no use: so the slots are handed out upwards or downwards, at random, but not
 * in any order.
 */
MU_AT_START static uint32_t claim_bits(const struct mu_size_class *k, size_t page, void **out, uint32_t n,
                                       uint64_t *rng) {
  struct mu_mini_heap *span = mu_mini_heap(page);
  char *base = mu_page_address(page);
  uint32_t start = span->live ? span->stamp : mu_rng_below(rng, k->slots), w = start / 64, last = 0;
  uint32_t left = n = (uint32_t)mu_min(n, (uint32_t)k->slots - span->live);
  uint64_t allowed = ~(uint64_t)0 << (start % 64);
  size_t size = k->size;
  bool up = mu_rng_next(rng) >> 63;
  ptrdiff_t step = up ? -1 : 1; /* vectors are emptied from their end */
  void **to = up ? out + n - 1 : out;
  while (left) {
    uint32_t bits = k->slots - w * 64U;
    uint64_t free = ~span->bitmap[w] & allowed & (bits >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << bits) - 1), rest = free;
    for (; rest && left; rest &= rest - 1, left--) {
      last = w * 64 + (uint32_t)__builtin_ctzll(rest);
      *to = base + last * size;
      to += step;
    }
    span->bitmap[w] |= free ^ rest;
    allowed = ~(uint64_t)0;
    w = w + 1 < k->words ? w + 1 : 0;
  }
  span->stamp = (uint16_t)(last + 1 < k->slots ? last + 1 : 0);
  return n;
}

static void mark_fresh(struct mu_run *run, void **slots, uint32_t n) {
  for (uint32_t i = 0; i < n; i++) {
    uint64_t bit = (uint64_t)1 << mu_place_of(run, slots[i]).slot;
    if (run->fresh & bit) slots[i] = (void *)((uintptr_t)slots[i] | mu_fresh_mark);
    run->fresh &= ~bit;
  }
}

MU_AT_START static uint32_t claim_from(struct mu_class_heap *h, const struct mu_size_class *k, size_t page, void **out,
                                       uint32_t n, uint64_t *rng) {
  struct mu_mini_heap *span = mu_mini_heap(page);
  struct mu_run *run = mu_run_of(page);
  if (span->live == 0) span_born(h, run, span);
  uint32_t got = claim_bits(k, page, out, n, rng);
  span->live = (uint16_t)(span->live + got);
  run->live += got;
  run->stamp = tick_now();
  h->live_slots += got;
  rebin(h, k, page);
  if (!k->meshable && run->fresh) mark_fresh(run, out, got);
  return got;
}

static size_t fullest(const struct mu_class_heap *h) {
  for (int bin = MU_FILL_BINS - 1; bin >= 0; bin--)
    if (h->bins[bin]) return h->bins[bin];
  return MU_NO_PAGE;
}

enum { MAX_VISITS = 16 }; /* spans that one claim gathers from */

/* From spans that hold something already, the fullest first. */
static uint32_t claim_partial(struct mu_class_heap *h, const struct mu_size_class *k, void **out, uint32_t n,
                              uint64_t *rng) {
  uint32_t got = 0;
  size_t page;
  for (int i = 0; i < MAX_VISITS && got < n && (page = fullest(h)); i++)
    got += claim_from(h, k, page, out + got, n - got, rng);
  return got;
}

MU_AT_START static uint32_t claim_locked(unsigned c, void **out, uint32_t n, uint64_t *rng, bool *grown) {
  struct mu_class_heap *h = &mu_class_heaps[c];
  const struct mu_size_class *k = &mu_classes[c];
  uint32_t got = claim_partial(h, k, out, n, rng);
  *grown = false;
  if (!got) {
    if (!h->bins[MU_EMPTY_BIN] && !h->bins[MU_CLEAN_BIN]) *grown = run_create(h, c);
    size_t page = h->bins[MU_EMPTY_BIN] ? h->bins[MU_EMPTY_BIN] : h->bins[MU_CLEAN_BIN];
    if (page) got = claim_from(h, k, page, out, n, rng);
  }
  h->ops++;
  return got;
}

uint32_t mu_claim(unsigned c, void **out, uint32_t n, uint64_t *rng, bool *grown) {
  mu_class_lock(c);
  uint32_t got = claim_locked(c, out, n, rng, grown);
  mu_class_unlock(c);
  return got;
}

/* ---- give back --------------------------------------------------------------------------------------------------- */

static MU_COLD void misuse(const struct mu_run *run, const void *p) {
  bool exact = mu_place_of(run, p).exact;
  mu_misuse(exact ? "free(%p): double free" : "free(%p): not the start of an allocation", p);
}

static MU_NOINLINE void last_slot_gone(struct mu_class_heap *h, const struct mu_size_class *k, size_t page) {
  struct mu_run *run = mu_run_of(page);
  struct mu_mini_heap *span = mu_mini_heap(page);
  if (span->state == MU_SPAN_OPEN) rebin(h, k, page);
  span_died(h, run, span);
  if (run->used == 0 && !run->closed && (run->meshed || h->spare_runs > k->spare_runs))
    run_destroy(h, (uint32_t)(page / MU_RUN_PAGES));
}

/* A span that is being given slots back: what is counted of it is counted once for those that come together. */
struct given_span {
  size_t at; /* its place in the arena, in spans of its class; SIZE_MAX: none */
  struct mu_run *run;
  struct mu_mini_heap *span;
  uint32_t gone;
};

/* It changes lists when it is off by more than one eighth: half of the changes, at the price of an order that is not
 * exact. */
static inline void settle(struct mu_class_heap *h, const struct mu_size_class *k, const struct given_span *g) {
  struct mu_mini_heap *span = g->span;
  uint32_t n = g->gone, live = span->live - n;
  span->live = (uint16_t)live;
  g->run->live -= n;
  h->live_slots -= n;
  if (MU_UNLIKELY(span->state == MU_SPAN_MESHED)) h->meshed_slots -= n;
  if (MU_UNLIKELY(live == 0))
    last_slot_gone(h, k, g->at << k->span_shift); /* its run may go with it */
  else if ((uint8_t)(span->bin - (live * k->bin_magic >> 24)) > 1 && span->state == MU_SPAN_OPEN)
    rebin(h, k, g->at << k->span_shift);
}

/* Neighbours often come together. */
MU_AT_START static void give_back_locked(unsigned c, void *const *slots, uint32_t n) {
  struct mu_class_heap *h = &mu_class_heaps[c];
  const struct mu_size_class *k = &mu_classes[c];
  const unsigned span_log = k->span_shift + mu_arena.page_shift;
  const uintptr_t base = (uintptr_t)mu_arena.base;
  const uint64_t magic = k->magic;
  struct given_span g = {.at = SIZE_MAX};
  h->ops++;
  if (MU_UNLIKELY(h->lost)) return;
  for (uint32_t i = 0; i < n; i++) {
    void *p = mu_unmarked(slots[i]);
    size_t offset = (uintptr_t)p - base;
    if (offset >> span_log != g.at) {
      if (MU_LIKELY(g.gone)) settle(h, k, &g);
      struct mu_run *run = mu_run_of(offset >> mu_arena.page_shift);
      g = (struct given_span){.at = SIZE_MAX};
      if (MU_UNLIKELY(k != &mu_classes[run->size_class])) {
        mu_misuse("free(%p): freed before its span went", p);
        continue;
      }
      g.at = offset >> span_log;
      g.run = run;
      size_t in_run = g.at & (k->spans_per_run - 1U);
      g.span = (struct mu_mini_heap *)(void *)(run->spans + in_run * k->meta);
      if (MU_UNLIKELY(run->thin)) g.span = mu_thin_mini_heap(run, k, in_run);
    }
    offset &= ((size_t)1 << span_log) - 1;
    uint64_t quotient = offset * magic;
    uint32_t slot = (uint32_t)(quotient >> 40);
    bool exact = (quotient & (((uint64_t)1 << 40) - 1)) < magic; /* mu_starts_slot */
    if (MU_UNLIKELY(!exact || slot >= k->slots || !mu_bit(g.span->bitmap, slot))) {
      misuse(g.run, p);
      continue;
    }
    mu_bit_clear(g.span->bitmap, slot);
    g.gone++;
  }
  if (MU_LIKELY(g.gone)) settle(h, k, &g);
}

void mu_give_back(unsigned c, void *const *slots, uint32_t n) {
  mu_class_lock(c);
  give_back_locked(c, slots, n);
  mu_class_unlock(c);
  mu_note_activity();
}

/* ---- the transfer cache ------------------------------------------------------------------------------------------ */

MU_AT_START uint32_t mu_take(unsigned c, void **out, uint32_t most, uint32_t n, uint64_t *rng, bool *grown) {
  struct mu_transfer_cache *cache = &mu_class_heaps[c].cache;
  uint32_t got;
  mu_class_lock(c);
  if (cache->count) {
    got = (uint32_t)mu_min(most, cache->count);
    cache->count -= got;
    if (cache->count < cache->low) cache->low = cache->count;
    memcpy(out, cache->slots + cache->count, got * sizeof *out);
    mu_class_heaps[c].ops++;
    *grown = false;
  } else {
    got = claim_locked(c, out, n, rng, grown);
  }
  mu_class_unlock(c);
  return got;
}

static bool cache_has_room(struct mu_transfer_cache *cache, const struct mu_size_class *k, uint32_t n) {
  if (cache->count + n > k->cache) return false;
  if (!cache->slots) cache->slots = mu_meta_alloc(k->cache * sizeof *cache->slots);
  return cache->slots;
}

/* What is no slot must not reach the next thread. A mark does not matter here: it is far above a span's bits. */
static bool all_are_slots(const struct mu_size_class *k, void *const *slots, uint32_t n) {
  if ((k->size & (k->size - 1)) == 0) {
    size_t any = 0;
#pragma GCC unroll 8
    for (uint32_t i = 0; i < n; i++) any |= (size_t)slots[i];
    return (any & (k->size - 1)) == 0;
  }
  size_t within = ((size_t)k->span_pages << mu_arena.page_shift) - 1, base = (size_t)mu_arena.base, last = 0;
  bool all = true;
  for (uint32_t i = 0; i < n; i++) {
    size_t offset = ((size_t)slots[i] - base) & within;
    all &= mu_starts_slot(k, offset);
    last = mu_max(last, offset);
  }
  return all && last < (size_t)k->slots * k->size; /* the tail holds none */
}

MU_AT_START void mu_put(unsigned c, void *const *slots, uint32_t n) {
  struct mu_transfer_cache *cache = &mu_class_heaps[c].cache;
  bool sound = all_are_slots(&mu_classes[c], slots, n);
  mu_class_lock(c);
  if (sound && cache_has_room(cache, &mu_classes[c], n)) {
    memcpy(cache->slots + cache->count, slots, n * sizeof *slots);
    cache->count += n;
    mu_class_heaps[c].ops++;
  } else {
    give_back_locked(c, slots, n);
  }
  mu_class_unlock(c);
}

/* The oldest go. In parts, so that nobody waits long for the lock. */
uint32_t mu_cache_trim(unsigned c, bool everything) {
  enum { PART = 64 };
  struct mu_transfer_cache *cache = &mu_class_heaps[c].cache;
  mu_class_lock(c);
  uint32_t surplus = everything ? cache->count : cache->low;
  while ((surplus = (uint32_t)mu_min(surplus, cache->count))) {
    uint32_t n = (uint32_t)mu_min(surplus, PART);
    give_back_locked(c, cache->slots, n);
    cache->count -= n;
    cache->low = (uint32_t)mu_min(cache->low, cache->count); /* a fork may come between two parts */
    surplus -= n;
    memmove(cache->slots, cache->slots + n, cache->count * sizeof *cache->slots);
    mu_class_unlock(c);
    mu_class_lock(c);
  }
  uint32_t left = cache->low = cache->count;
  mu_class_unlock(c);
  return left;
}

/* ---- marks ------------------------------------------------------------------------------------------------------- */

void mu_span_mark_aligned(const void *p) {
  struct mu_run *run = mu_run_of(mu_page_of(p));
  /* Without the lock: once set it stays set while a slot of the span is live, and this one is. A table that is replaced
   * at this moment is that of a meshed run: what becomes of its spans is decided already. */
  if (__atomic_load_n(&mu_place_of(run, p).span->flags, __ATOMIC_RELAXED) & MU_MH_ALIGNED) return;
  mu_class_lock(run->size_class);
  struct mu_place at = mu_place_of(run, p);
  if (at.span->live) at.span->flags |= MU_MH_ALIGNED;
  mu_class_unlock(run->size_class);
}

enum mu_slot_is mu_slot_is(const void *p) {
  struct mu_run *run = mu_run_of(mu_page_of(p));
  unsigned c = run->size_class;
  enum mu_slot_is is = MU_SLOT_NONE;
  mu_class_lock(c);
  if (run->in_use && run->size_class == c) {
    struct mu_place at = mu_place_of(run, p);
    if (at.exact) is = mu_bit(at.span->bitmap, at.slot) ? MU_SLOT_LIVE : MU_SLOT_FREE;
  }
  mu_class_unlock(c);
  return is;
}

int mu_span_exempt(const void *p) {
  struct mu_run *run = mu_run_of(mu_page_of(p));
  int result = 0;
  mu_class_lock(run->size_class);
  struct mu_place at = mu_place_of(run, p);
  if (!at.exact || !mu_bit(at.span->bitmap, at.slot))
    result = EINVAL;
  else if (at.span->state == MU_SPAN_MESHED || at.span->state == MU_SPAN_CLOSED)
    result = EBUSY;
  else
    at.span->exempt = 1;
  mu_class_unlock(run->size_class);
  return result;
}

static void exempt_in_run(uint32_t r, size_t first, size_t last) {
  enum { PATIENCE_NS = 50000000 };
  const struct mu_run *run = &mu_arena.runs[r];
  unsigned c = run->size_class;
  if (!run->in_use || !mu_lock_seize(&mu_class_heaps[c].lock, mu_now_ns() + PATIENCE_NS)) return;
  if (run->in_use && run->size_class == c)
    for (size_t page = mu_span_page(run, first); page <= last; page += mu_classes[c].span_pages)
      if (mu_mini_heap(page)->live) mu_mini_heap(page)->exempt = 1;
  mu_lock_let_go(&mu_class_heaps[c].lock);
}

void mu_spans_exempt(const void *start, size_t len) {
  size_t page = mu_page_of(start), end = mu_page_of((const char *)start + len - 1) + 1;
  end = mu_min(end, mu_arena_limit());
  if (len == 0) return;
  for (; page < end; page = mu_round_down(page, MU_RUN_PAGES) + MU_RUN_PAGES) {
    size_t last = mu_min(mu_round_down(page, MU_RUN_PAGES) + MU_RUN_PAGES, end) - 1;
    exempt_in_run((uint32_t)(page / MU_RUN_PAGES), page, last);
  }
}

/* ---- for the mesher ---------------------------------------------------------------------------------------------- */

void mu_run_close(uint32_t r) {
  struct mu_run *run = &mu_arena.runs[r];
  struct mu_class_heap *h = &mu_class_heaps[run->size_class];
  unsigned step = mu_classes[run->size_class].span_pages;
  run->closed = 1;
  size_t first = (size_t)r * MU_RUN_PAGES;
  for (size_t at = first; at < first + MU_RUN_PAGES; at += step) {
    unlist(h, at);
    if (mu_mini_heap(at)->state == MU_SPAN_OPEN) mu_mini_heap(at)->state = MU_SPAN_CLOSED;
  }
}

void mu_run_hold(uint32_t r) {
  mu_arena.runs[r].closed = 1;
}

struct mu_packed_place mu_unit_place(uint32_t r, unsigned unit_pages, unsigned unit) {
  const struct mu_run *run = &mu_arena.runs[r];
  if (run->thin) return mu_thin_place(run, &mu_classes[run->size_class], unit_pages, unit);
  const struct mu_mini_heap *span = mu_mini_heap((size_t)r * MU_RUN_PAGES + (size_t)unit * unit_pages);
  if (span->state != MU_SPAN_MESHED) return (struct mu_packed_place){0, 0};
  return (struct mu_packed_place){span->next, span->prev};
}

static void map_span(const struct mu_size_class *k, size_t page, uint8_t value) {
  for (size_t i = page; i < page + k->span_pages; i++) __atomic_store_n(&mu_arena.page_map[i], value, __ATOMIC_RELAXED);
}

static void open_span(struct mu_class_heap *h, const struct mu_size_class *k, size_t page) {
  struct mu_mini_heap *span = mu_mini_heap(page);
  span->state = MU_SPAN_OPEN;
  span->bin = MU_NO_BIN;
  enlist(h, page, bin_for(k, span));
}

static void mesh_span(struct mu_class_heap *h, const struct mu_size_class *k, size_t page,
                      struct mu_packed_place where) {
  struct mu_mini_heap *span = mu_mini_heap(page);
  count_shown(k, span, span->live != 0);
  if (span->state != MU_SPAN_MESHED) {
    if (span->live == 0 && (span->flags & MU_MH_TOUCHED)) h->touched_empty--;
    h->meshed_slots += span->live;
  }
  span->state = MU_SPAN_MESHED;
  span->flags = (uint8_t)((span->flags & ~MU_MH_COVERED) | MU_MH_TOUCHED | (span->live ? 0 : MU_MH_COVERED));
  span->next = where.file;
  span->prev = where.unit;
  map_span(k, page, 0);
}

/* A meshed unit without a live slot: its mapping is replaced, if the kernel lets us. */
static void refresh_unit(struct mu_class_heap *h, const struct mu_size_class *k, size_t page, uint32_t unit_pages,
                         uint8_t c) {
  if (!mu_fresh_mapping(mu_page_address(page), (size_t)unit_pages << mu_arena.page_shift)) return;
  mu_file_unref(mu_mini_heap(page)->next);
  for (size_t at = page; at < page + unit_pages; at += k->span_pages) {
    count_shown(k, mu_mini_heap(at), false);
    mu_mini_heap(at)->flags = 0;
    map_span(k, at, c);
    open_span(h, k, at);
  }
}

static void settle_unit(uint32_t r, unsigned u, uint32_t unit_pages, bool meshed, struct mu_packed_place where) {
  uint8_t c = mu_arena.runs[r].size_class;
  struct mu_class_heap *h = &mu_class_heaps[c];
  const struct mu_size_class *k = &mu_classes[c];
  struct mu_packed_place before = mu_unit_place(r, unit_pages, u);
  size_t first = (size_t)r * MU_RUN_PAGES + (size_t)u * unit_pages;
  if (meshed) {
    mu_file_ref(where.file);
    if (before.file) mu_file_unref(before.file);
  }
  for (size_t at = first; at < first + unit_pages; at += k->span_pages) {
    if (meshed)
      mesh_span(h, k, at, where);
    else if (mu_mini_heap(at)->state == MU_SPAN_CLOSED)
      open_span(h, k, at);
  }
}

static bool unit_is_dead(const struct mu_size_class *k, size_t page, uint32_t unit_pages) {
  for (size_t at = page; at < page + unit_pages; at += k->span_pages)
    if (mu_mini_heap(at)->live || mu_mini_heap(at)->state != MU_SPAN_MESHED) return false;
  return true;
}

/* Mappings the run needs: stretches of units that show neighbouring places of one file, or private memory. */
static uint32_t mappings_of(uint32_t r, uint32_t unit_pages) {
  uint32_t n = 0;
  struct mu_packed_place last = {0, 0};
  for (unsigned u = 0; u < MU_RUN_PAGES / unit_pages; u++) {
    struct mu_packed_place at = mu_unit_place(r, unit_pages, u);
    bool goes_on = u && at.file == last.file && (!at.file || at.unit == last.unit + 1);
    n += !goes_on;
    last = at;
  }
  return n;
}

static void note_meshed(struct mu_class_heap *h, uint32_t r, uint32_t unit_pages) {
  struct mu_run *run = &mu_arena.runs[r];
  bool any = false;
  for (unsigned u = 0; u < MU_RUN_PAGES / unit_pages; u++) any |= mu_unit_place(r, unit_pages, u).file != 0;
  h->meshed_runs += (size_t)any - (size_t)run->meshed;
  run->meshed = any;
  run->unit_log = (uint8_t)mu_log2(unit_pages);
  uint32_t mappings = any ? mappings_of(r, unit_pages) : 0;
  atomic_fetch_add_explicit(&mu_mesh_mappings, (uint64_t)mappings - run->mappings, memory_order_relaxed);
  run->mappings = mappings;
}

/* ---- thin tables ------------------------------------------------------------------------------------------------- */

bool mu_run_thicken(uint32_t r) {
  struct mu_run *run = &mu_arena.runs[r];
  const struct mu_size_class *k = &mu_classes[run->size_class];
  if (!run->thin) return true;
  char *whole = mu_span_table_alloc(run->size_class);
  if (!whole) return false;
  mu_thin_table_expand(run, k, whole);
  mu_thin_table_free(k, run->spans, run->thin);
  run->spans = whole;
  run->thin = 0;
  return true;
}

/* What has died needs no entry any more. */
static void cover_dead(const struct mu_size_class *k, uint32_t r) {
  for (size_t at = (size_t)r * MU_RUN_PAGES; at < ((size_t)r + 1) * MU_RUN_PAGES; at += k->span_pages) {
    struct mu_mini_heap *span = mu_mini_heap(at);
    if (span->state != MU_SPAN_MESHED || span->live || (span->flags & MU_MH_COVERED)) continue;
    count_shown(k, span, false);
    span->flags |= MU_MH_COVERED;
  }
}

/* A meshed run of which little is left does with a smaller table, a thinner one perhaps than it has. */
static void make_thin(uint32_t r) {
  struct mu_run *run = &mu_arena.runs[r];
  const struct mu_size_class *k = &mu_classes[run->size_class];
  if (!run->meshed || run->closed || !mu_thin_pays(k, run->used, run->thin)) return;
  cover_dead(k, r);
  unsigned entries = mu_thin_entries(run, k);
  char *table = mu_thin_pays(k, entries, run->thin) ? mu_thin_table_make(run, k, entries) : NULL;
  if (!table) return;
  free_table(run);
  run->spans = table;
  run->thin = (uint8_t)entries;
}

static void move_table(uint32_t r) {
  struct mu_run *run = &mu_arena.runs[r];
  unsigned c = run->size_class;
  if (!run->meshed || run->closed) return; /* of others the threads may be about to look at a flag, without a lock */
  run->spans =
      run->thin ? mu_thin_table_move(&mu_classes[c], run->spans, run->thin) : mu_span_table_move(c, run->spans);
}

void mu_run_settle(uint32_t r, uint32_t unit_pages, uint64_t meshed, uint64_t fresh,
                   const struct mu_packed_place *where) {
  struct mu_run *run = &mu_arena.runs[r];
  struct mu_class_heap *h = &mu_class_heaps[run->size_class];
  const struct mu_size_class *k = &mu_classes[run->size_class];
  run->closed = 0;
  for (unsigned u = 0; u < MU_RUN_PAGES / unit_pages; u++) {
    size_t page = (size_t)r * MU_RUN_PAGES + (size_t)u * unit_pages;
    settle_unit(r, u, unit_pages, meshed >> u & 1, meshed >> u & 1 ? where[u] : (struct mu_packed_place){0, 0});
    if ((fresh >> u & 1) && unit_is_dead(k, page, unit_pages)) refresh_unit(h, k, page, unit_pages, run->size_class);
  }
  note_meshed(h, r, unit_pages);
  bool gone = run->used == 0 && (run->meshed || h->spare_runs > k->spare_runs) && run_destroy(h, r);
  if (!gone) make_thin(r);
}

void mu_reap_runs(unsigned c) {
  struct mu_class_heap *h = &mu_class_heaps[c];
  mu_lock_take(&h->lock);
  for (uint32_t r = h->meshed_runs ? h->runs : 0, next; r; r = next) {
    const struct mu_run *run = &mu_arena.runs[r];
    next = run->next;
    bool gone = run->meshed && !run->used && !run->closed && run_destroy(h, r);
    if (!gone) make_thin(r);
    if (!gone) move_table(r);
  }
  mu_lock_release(&h->lock);
}

uint32_t mu_empty_take(unsigned c, uint32_t *pages, uint32_t max, uint32_t before_tick) {
  struct mu_class_heap *h = &mu_class_heaps[c];
  uint32_t n = 0;
  mu_lock_take(&h->lock);
  while (n < max && h->oldest_empty) {
    size_t page = h->oldest_empty;
    struct mu_mini_heap *span = mu_mini_heap(page);
    if ((int16_t)(span->stamp - (uint16_t)before_tick) > 0) break;
    unlist(h, page);
    span->state = MU_SPAN_CLOSED;
    mu_run_of(page)->closed++;
    pages[n++] = (uint32_t)page;
  }
  mu_lock_release(&h->lock);
  return n;
}

void mu_empty_return(unsigned c, const uint32_t *pages, uint32_t n, bool dropped) {
  struct mu_class_heap *h = &mu_class_heaps[c];
  mu_lock_take(&h->lock);
  for (uint32_t i = 0; i < n; i++) {
    struct mu_mini_heap *span = mu_mini_heap(pages[i]);
    struct mu_run *run = mu_run_of(pages[i]);
    span->state = MU_SPAN_OPEN;
    if (dropped) {
      span->flags &= (uint8_t)~MU_MH_TOUCHED;
      h->touched_empty--;
    }
    enlist(h, pages[i], bin_for(&mu_classes[c], span));
    if (--run->closed == 0 && run->used == 0 && (run->meshed || h->spare_runs > mu_classes[c].spare_runs))
      run_destroy(h, (uint32_t)(pages[i] / MU_RUN_PAGES));
  }
  mu_lock_release(&h->lock);
}

/* ---- idle pages of spans of several pages ------------------------------------------------------------------------ */

static uint64_t page_mask(size_t first, size_t end) {
  return (end >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << end) - 1) & ~(((uint64_t)1 << first) - 1);
}

/* The pages of a slot, numbered from its span's first. */
static uint64_t pages_of_slot(const struct mu_size_class *k, uint32_t slot) {
  size_t start = (size_t)slot * k->size;
  return page_mask(start >> mu_arena.page_shift, ((start + k->size - 1) >> mu_arena.page_shift) + 1);
}

static uint64_t idle_pages(const struct mu_size_class *k, const struct mu_mini_heap *span) {
  uint64_t pages = page_mask(0, k->span_pages);
  for (uint32_t w = 0; w < k->words; w++)
    for (uint64_t left = span->bitmap[w]; left; left &= left - 1)
      pages &= ~pages_of_slot(k, w * 64 + (uint32_t)__builtin_ctzll(left));
  return pages;
}

MU_RACY enum mu_idle mu_idle_might_be(uint32_t r, uint32_t before_tick, bool any_age) {
  const struct mu_run *run = &mu_arena.runs[r];
  if (!run->in_use || !run->size_class) return MU_IDLE_NONE;
  const struct mu_size_class *k = &mu_classes[run->size_class];
  uint32_t slots = (uint32_t)k->slots * k->spans_per_run;
  if (k->span_pages == 1 || run->closed || !run->live || run->live >= slots) return MU_IDLE_NONE;
  if (run->trimmed_live == run->live && (int32_t)(run->stamp - run->trimmed) < 0) return MU_IDLE_NONE;
  return !any_age && (int32_t)(run->stamp - before_tick) > 0 ? MU_IDLE_TOO_YOUNG : MU_IDLE_LOOK;
}

MU_RACY uint64_t mu_idle_take(uint32_t r, uint64_t present) {
  struct mu_run *run = &mu_arena.runs[r];
  unsigned c = run->size_class;
  struct mu_class_heap *h = &mu_class_heaps[c];
  const struct mu_size_class *k = &mu_classes[c];
  uint64_t pages = 0;
  if (!c) return 0;
  mu_lock_take(&h->lock);
  bool fine = run->in_use && run->size_class == c && !run->closed && !h->lost;
  for (unsigned i = 0; fine && i < MU_RUN_PAGES; i += k->span_pages) {
    size_t page = (size_t)r * MU_RUN_PAGES + i;
    struct mu_mini_heap *span = mu_mini_heap(page);
    uint64_t idle = span->state == MU_SPAN_OPEN && span->live ? idle_pages(k, span) << i : 0;
    if (!(idle & present)) continue;
    unlist(h, page);
    span->state = MU_SPAN_CLOSED;
    run->closed++;
    pages |= idle;
  }
  if (fine) run->trimmed_live = run->live, run->trimmed = tick_now();
  mu_lock_release(&h->lock);
  return pages;
}

/* Of a run that is one span: slots of which every page is fresh. What was freed meanwhile has others. */
static void note_fresh(struct mu_run *run, const struct mu_size_class *k, const struct mu_mini_heap *span,
                       uint64_t pages) {
  for (uint32_t slot = 0; slot < k->slots; slot++)
    if (!mu_bit(span->bitmap, slot) && !(pages_of_slot(k, slot) & ~pages)) run->fresh |= (uint64_t)1 << slot;
}

void mu_idle_return(uint32_t r, uint64_t pages, bool dropped) {
  struct mu_run *run = &mu_arena.runs[r];
  struct mu_class_heap *h = &mu_class_heaps[run->size_class];
  const struct mu_size_class *k = &mu_classes[run->size_class];
  mu_lock_take(&h->lock);
  for (unsigned i = 0; i < MU_RUN_PAGES; i += k->span_pages) {
    size_t page = (size_t)r * MU_RUN_PAGES + i;
    struct mu_mini_heap *span = mu_mini_heap(page);
    if (!(pages & page_mask(i, i + k->span_pages)) || span->state != MU_SPAN_CLOSED) continue;
    if (dropped && !k->meshable) note_fresh(run, k, span, pages);
    span->state = MU_SPAN_OPEN;
    enlist(h, page, bin_for(k, span));
    run->closed--;
  }
  if (run->closed == 0 && run->used == 0 && (run->meshed || h->spare_runs > k->spare_runs)) run_destroy(h, r);
  mu_lock_release(&h->lock);
}

/* ---- validator --------------------------------------------------------------------------------------------------- */

/* One that has lost slots may be in the bin above its own. */
static bool may_be_in_bin(const struct mu_size_class *k, const struct mu_mini_heap *span) {
  uint8_t own = bin_for(k, span);
  return span->bin == own || (own < MU_FILL_BINS && span->live && span->bin == own + 1 && span->bin < MU_FILL_BINS);
}

static uint32_t validate_span(const struct mu_size_class *k, unsigned c, size_t page) {
  const struct mu_mini_heap *span = mu_mini_heap(page);
  uint32_t live = 0;
  for (uint32_t w = 0; w < k->words; w++) live += (uint32_t)__builtin_popcountll(span->bitmap[w]);
  MU_CHECK(span->state >= MU_SPAN_OPEN && span->state <= MU_SPAN_MESHED);
  MU_CHECK(span->live == live);
  MU_CHECK(!(span->flags & MU_MH_COVERED) || (span->state == MU_SPAN_MESHED && !live));
  MU_CHECK(k->slots % 64 == 0 || (span->bitmap[k->words - 1] >> (k->slots % 64)) == 0);
  MU_CHECK(span->state == MU_SPAN_OPEN ? may_be_in_bin(k, span) : span->bin == MU_NO_BIN);
  for (size_t i = page; i < page + k->span_pages; i++)
    MU_CHECK(mu_arena.page_map[i] == (span->state == MU_SPAN_MESHED ? 0 : c));
  return live;
}

void mu_class_validate(unsigned c) {
  const struct mu_class_heap *h = &mu_class_heaps[c];
  const struct mu_size_class *k = &mu_classes[c];
  size_t live = 0, used = 0, runs = 0, meshed = 0, spare = 0, meshed_slots = 0, touched_empty = 0;
  for (uint32_t r = h->runs; r; r = mu_arena.runs[r].next, runs++) {
    const struct mu_run *run = &mu_arena.runs[r];
    uint32_t run_live = 0, run_used = 0;
    MU_CHECK(run->in_use && run->size_class == c);
    MU_CHECK(k->meshable || !(run->fresh & mu_mini_heap((size_t)r * MU_RUN_PAGES)->bitmap[0]) || !run->used);
    for (size_t at = (size_t)r * MU_RUN_PAGES; at < ((size_t)r + 1) * MU_RUN_PAGES; at += k->span_pages) {
      uint32_t n = validate_span(k, c, at);
      bool is_meshed = mu_mini_heap(at)->state == MU_SPAN_MESHED;
      run_live += n;
      run_used += n > 0;
      meshed_slots += is_meshed ? n : 0;
      touched_empty += n == 0 && !is_meshed && (mu_mini_heap(at)->flags & MU_MH_TOUCHED);
    }
    MU_CHECK(run->live == run_live);
    MU_CHECK(run->used == run_used);
    live += run_live;
    used += run_used;
    meshed += run->meshed;
    spare += run_used == 0;
  }
  MU_CHECK(h->live_slots == live && h->used_spans == used && h->run_count == runs);
  MU_CHECK(h->meshed_runs == meshed && h->spare_runs == spare && h->meshed_slots == meshed_slots);
  MU_CHECK(h->touched_empty == touched_empty);
  MU_CHECK(h->cache.count <= k->cache && h->cache.low <= h->cache.count);
  for (uint32_t i = 0; i < h->cache.count; i++) {
    void *slot = mu_unmarked(h->cache.slots[i]);
    const struct mu_run *run = mu_run_of(mu_page_of(slot));
    MU_CHECK(run->in_use && run->size_class == c);
    struct mu_place at = mu_place_of(run, slot);
    MU_CHECK(at.exact && mu_bit(at.span->bitmap, at.slot));
  }
}

/* ---- fork -------------------------------------------------------------------------------------------------------- */

void mu_global_lock_all(void) {
  for (unsigned c = 1; c < MU_CLASSES; c++) mu_lock_take(&mu_class_heaps[c].lock);
}

void mu_global_unlock_all(void) {
  for (unsigned c = MU_CLASSES - 1; c >= 1; c--) mu_lock_release(&mu_class_heaps[c].lock);
}

void mu_class_lost(unsigned c) {
  struct mu_class_heap *h = &mu_class_heaps[c];
  *h = (struct mu_class_heap){.lock = {.rank = h->lock.rank}, .cache = {.slots = h->cache.slots}, .lost = true};
  mu_span_table_class_lost(c);
}
