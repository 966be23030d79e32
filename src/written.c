/* SPDX-License-Identifier: Apache-2.0 */
#include "src/written.h"
#include "src/global_heap.h"
#include "src/pack.h"
#include "src/sys.h"
#include "uffd/engine.h"

enum {
  PAGES = 4,        /* of a run are looked at */
  PART = 4096,      /* bytes of a page that are looked at */
  LOOK_MS = 1100,   /* between two looks: what is done once a second is seen */
  STALE_MS = 24000, /* what was seen so long ago says nothing */
};
static const uint64_t LOOK_NS = LOOK_MS * 1000000ULL, STALE_NS = STALE_MS * 1000000ULL;

struct look {
  uint64_t pages; /* of the run */
  uint64_t ns;    /* when the first look was over; 0: there was none */
  uint32_t tick;  /* then, or before */
  uint32_t sum;
};

static struct look *looks; /* by run number: memory that costs nothing where nobody looks */

void mu_written_forget(void) {
  looks = NULL; /* not inherited */
}

static bool have_looks(void) {
  if (!looks) looks = mu_scratch_alloc(mu_arena.reserved / MU_RUN_PAGES * sizeof *looks);
  return looks;
}

/* Up to PAGES pages with live slots, from all over the run. What was freed since the last time does not matter, as free
 * writes nothing; what was claimed has reset the look. */
static uint64_t choose_pages(uint32_t r) {
  const struct mu_run *run = &mu_arena.runs[r];
  unsigned c = run->size_class, used = 0, wanted = 0, seen = 0;
  uint64_t live = 0, chosen = 0, present, movable;
  size_t first = (size_t)r * MU_RUN_PAGES;
  mu_class_lock(c);
  const struct mu_size_class *k = &mu_classes[c];
  for (unsigned i = 0; run->in_use && run->size_class == c && i < MU_RUN_PAGES; i += k->span_pages) {
    const struct mu_mini_heap *span = mu_mini_heap(first + i);
    if (span->state != MU_SPAN_OPEN || !span->live || span->exempt) continue;
    unsigned slot = 0;
    while (!mu_bit(span->bitmap, slot)) slot++;
    live |= (uint64_t)1 << (i + (slot * k->size >> mu_arena.page_shift));
  }
  mu_class_unlock(c);
  /* What was swapped out stays there: nobody writes to it. */
  if (!live || mu_resident(mu_page_address(first), MU_RUN_PAGES, &present, &movable) < 0) return 0;
  live &= movable;
  used = (unsigned)__builtin_popcountll(live);
  for (; live; live &= live - 1, seen++)
    if (seen * PAGES / used >= wanted) chosen |= live & -live, wanted = seen * PAGES / used + 1;
  return chosen;
}

/* False when it cannot be read. */
static bool sum_of(uint32_t r, uint64_t pages, uint32_t *sum) {
  uint64_t words[PART / 8], h = 14695981039346656037U;
  for (; pages; pages &= pages - 1) {
    size_t page = (size_t)r * MU_RUN_PAGES + (unsigned)__builtin_ctzll(pages);
    if (!mu_peek(mu_page_address(page), words, sizeof words)) return false;
    for (size_t i = 0; i < PART / 8; i++) h = (h ^ words[i]) * 1099511628211U ^ h >> 29;
  }
  *sum = (uint32_t)(h ^ h >> 32);
  return true;
}

/* By the clock, as a tick may be long over when the mesher comes here. */
enum mu_written mu_written_look(uint32_t r, uint32_t tick) {
  uint32_t sum;
  if (!have_looks()) return MU_WRITTEN_NOT;
  struct look *l = &looks[r];
  uint64_t age = mu_now_ns() - l->ns;
  bool reset = !l->ns || age > STALE_NS || (int32_t)(mu_arena.runs[r].stamp - l->tick) >= 0;
  if (reset) {
    *l = (struct look){.pages = choose_pages(r), .tick = tick};
    if (!l->pages || !sum_of(r, l->pages, &l->sum)) return MU_WRITTEN_NOT;
    l->ns = mu_now_ns();
    return MU_WRITTEN_WAIT;
  }
  if (age < LOOK_NS) return MU_WRITTEN_WAIT;
  if (!sum_of(r, l->pages, &sum) || sum == l->sum) return MU_WRITTEN_NOT;
  l->ns = 0;
  return MU_WRITTEN;
}
