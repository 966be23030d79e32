/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is changed here is changed under the pass lock, as whatever the mesher changes: a raw fork waits for nothing
 * else, and its child would go on with a heap that is half changed.
 */
#include "src/reclaim.h"
#include "src/decay.h"
#include "src/global_heap.h"
#include "src/huge.h"
#include "src/mesher.h"
#include "src/options.h"
#include "src/pass.h"
#include "src/probe.h"
#include "src/sys.h"
#include "uffd/engine.h"

enum {
  BATCH = 512,
  HOLD_PAGES = 2048, /* dropped at most while a fork may wait: a millisecond */
  MIN_PAGES = 16,    /* of a kind: less waits until it is due whatever the curve says */
  TICK_MS = 100,
};

static struct mu_decay decay;
static bool begun;
static bool failed; /* the last that was tried: not waited for */

static bool drop(const struct mu_range *ranges, size_t n) {
  for (size_t i = 0; i < n; i++) {
    mu_extents_dropping(ranges[i].start, ranges[i].len);
    mu_huge_divide(ranges[i].start, ranges[i].len);
  }
  failed = !mu_drop(ranges, n);
  return !failed;
}

static bool drop_one(void *start, size_t len) {
  struct mu_range range = {start, len};
  return drop(&range, 1);
}

static size_t drop_extents(uint32_t tick, size_t most) {
  size_t all = 0, want, done;
  do {
    want = mu_min(most - all, HOLD_PAGES);
    mu_pass_lock(); /* a fork must not see an extent that is on no list */
    done = want ? mu_extent_purge(tick, want, drop_one) : 0;
    mu_pass_unlock();
    all += done;
  } while (done && all < most);
  return all;
}

/* Neighbouring spans become one range. */
static size_t ranges_of(const uint32_t *pages, uint32_t n, size_t span_bytes, struct mu_range *ranges) {
  size_t count = 0;
  for (uint32_t i = 0; i < n; i++) {
    char *start = mu_page_address(pages[i]);
    struct mu_range *last = count ? &ranges[count - 1] : NULL;
    if (last && (char *)last->start + last->len == start)
      last->len += span_bytes;
    else if (last && start + span_bytes == last->start)
      last->start = start, last->len += span_bytes;
    else
      ranges[count++] = (struct mu_range){start, span_bytes};
  }
  return count;
}

static size_t drop_spans(unsigned c, uint32_t tick, size_t most) {
  uint32_t pages[BATCH], n, want;
  struct mu_range ranges[BATCH];
  size_t span_bytes = (size_t)mu_classes[c].span_pages << mu_arena.page_shift, spans = most / mu_classes[c].span_pages,
         done = 0;
  do {
    want = (uint32_t)mu_min(spans - done, BATCH);
    mu_pass_lock();
    n = mu_empty_take(c, pages, want, tick);
    if (n) {
      bool dropped = drop(ranges, ranges_of(pages, n, span_bytes, ranges));
      mu_empty_return(c, pages, n, dropped);
      if (!dropped) n = 0; /* tried again when they are old enough again */
      done += n;
    }
    mu_pass_unlock();
  } while (n && n == want);
  return done * mu_classes[c].span_pages;
}

MU_RACY static size_t unused_in(unsigned c) {
  return (size_t)mu_class_heaps[c].touched_empty * mu_classes[c].span_pages;
}

MU_RACY static size_t unused_pages(void) {
  size_t pages = atomic_load_explicit(&mu_dirty_pages, memory_order_relaxed);
  for (unsigned c = 1; c < MU_CLASSES; c++) pages += unused_in(c);
  return pages;
}

static size_t count(size_t pages) {
  mu_count(&mu_mesher_counters.reclaimed_bytes, pages << mu_arena.page_shift);
  if (pages) MU_PROBE1(reclaimed, pages << mu_arena.page_shift);
  return pages;
}

/* Everything that became unused before the tick. */
static size_t drop_before(uint32_t tick) {
  size_t pages = drop_extents(tick, SIZE_MAX);
  for (unsigned c = 1; c < MU_CLASSES; c++)
    if (unused_in(c)) pages += drop_spans(c, tick, SIZE_MAX);
  return pages;
}

/* ---- idle pages of spans of several pages ------------------------------------------------------------------------ */

/* Such spans are looked at all at once, when something was claimed or given back since the last time. */
static struct {
  uint64_t ops, next; /* next: ns */
  bool waits;         /* something was too young */
} idle;

MU_RACY static uint64_t ops_of_long_spans(void) {
  uint64_t ops = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++)
    if (mu_classes[c].span_pages > 1) ops += mu_class_heaps[c].ops;
  return ops;
}

static size_t ranges_of_mask(uint32_t r, uint64_t pages, struct mu_range *ranges) {
  size_t n = 0;
  for (unsigned at = 0, len; at < MU_RUN_PAGES; at += len) {
    bool idle_here = pages >> at & 1;
    for (len = 1; at + len < MU_RUN_PAGES && (pages >> (at + len) & 1) == idle_here;) len++;
    if (idle_here)
      ranges[n++] =
          (struct mu_range){mu_page_address((size_t)r * MU_RUN_PAGES + at), (size_t)len << mu_arena.page_shift};
  }
  return n;
}

static size_t drop_idle_in(uint32_t r) {
  struct mu_range ranges[MU_RUN_PAGES / 2 + 1];
  uint64_t present, movable, pages;
  if (mu_resident(mu_page_address((size_t)r * MU_RUN_PAGES), MU_RUN_PAGES, &present, &movable) < 0)
    present = ~(uint64_t)0;
  mu_pass_lock();
  pages = mu_idle_take(r, present);
  bool dropped = pages && drop(ranges, ranges_of_mask(r, pages & present, ranges));
  if (pages) mu_idle_return(r, pages, dropped);
  mu_pass_unlock();
  return dropped ? (size_t)__builtin_popcountll(pages & present) : 0;
}

static size_t drop_idle(uint32_t tick, bool any_age) {
  size_t pages = 0;
  idle.ops = ops_of_long_spans();
  idle.waits = false;
  for (uint32_t r = 1; r < mu_arena_limit() / MU_RUN_PAGES; r++) {
    enum mu_idle might = mu_idle_might_be(r, tick, any_age);
    idle.waits |= might == MU_IDLE_TOO_YOUNG;
    if (might == MU_IDLE_LOOK) pages += drop_idle_in(r);
  }
  return pages;
}

static bool idle_pages_wait(void) {
  return idle.waits || ops_of_long_spans() != idle.ops;
}

static size_t drop_idle_when_due(uint32_t tick, uint64_t now, uint64_t decay_ns) {
  if (now < idle.next || !idle_pages_wait()) return 0;
  idle.next = now + decay_ns / 2;
  return drop_idle(tick, false);
}

bool mu_reclaim_waits(void) {
  return (unused_pages() || idle_pages_wait()) && !failed;
}

/* Each kind gives its share of `excess`, the oldest first. */
static size_t drop_shares(size_t excess, size_t unused, uint32_t now) {
  double share = (double)excess / (double)unused;
  size_t pages = 0, part = (size_t)((double)atomic_load_explicit(&mu_dirty_pages, memory_order_relaxed) * share);
  if (part >= MIN_PAGES) pages += drop_extents(now, part);
  for (unsigned c = 1; c < MU_CLASSES; c++)
    if ((part = (size_t)((double)unused_in(c) * share)) >= MIN_PAGES) pages += drop_spans(c, now, part);
  return pages;
}

size_t mu_reclaim_old(void) {
  uint32_t tick = atomic_load_explicit(&mu_tick, memory_order_relaxed);
  uint64_t now = mu_now_ns();
  uint64_t decay_ns = mu_options.eager ? 0 : mu_options.decay_ms * 1000000ULL;
  if (!begun) mu_decay_begin(&decay, decay_ns, now);
  begun = true;
  uint32_t before = tick - (mu_options.eager ? 1 : mu_options.decay_ms / TICK_MS);
  count(drop_idle_when_due(before, now, decay_ns));
  size_t unused = unused_pages(), allowed = mu_decay_allows(&decay, now, unused), pages = 0;
  if (!unused) return 0;
  pages = drop_before(before);
  if (allowed + pages < unused) pages += drop_shares(unused - allowed - pages, unused, tick);
  mu_decay_note_left(&decay, unused_pages());
  return count(pages);
}

size_t mu_reclaim_all(void) {
  uint32_t tick = atomic_load_explicit(&mu_tick, memory_order_relaxed);
  size_t pages = drop_idle(tick, true) + drop_before(tick);
  if (begun) mu_decay_note_left(&decay, unused_pages());
  return count(pages);
}

MU_RACY uint32_t mu_reclaim_cached(bool everything) {
  uint32_t left = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++)
    if (mu_class_heaps[c].cache.count) {
      mu_pass_lock();
      left += mu_cache_trim(c, everything);
      mu_pass_unlock();
    }
  return left;
}

void mu_reclaim_renew(void) {
  begun = false;
}
