/* SPDX-License-Identifier: Apache-2.0 */
#include "src/nested.h"
#include "src/arena.h"
#include "src/log.h"
#include "src/sys.h"
#include <sys/mman.h>

/* A block lies within 64 pages, as a word of the bitmap stands for them: so one compare-and-swap claims it. */
enum { WORDS = 64, MOST_PAGES = 64, PAGES = WORDS * MOST_PAGES };

static _Atomic(char *) range;
static _Atomic uint64_t taken[WORDS];
static _Atomic uint8_t length[PAGES]; /* of the block that begins there; 0: none does */

MU_EARLY _Atomic(void *) mu_nested_deferred;

void mu_free(void *p) __attribute__((weak)); /* not there in unit tests */

/* Reserved by the first who needs it. */
static char *reserved(void) {
  char *at = atomic_load_explicit(&range, memory_order_acquire), *none = NULL;
  size_t bytes = (size_t)PAGES << mu_arena.page_shift;
  int err;
  if (at ||
      !(at = mu_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err)))
    return at;
  if (atomic_compare_exchange_strong_explicit(&range, &none, at, memory_order_acq_rel, memory_order_acquire)) return at;
  mu_munmap(at, bytes);
  return none;
}

/* The lowest of n clear bits in a row; 64: there are none. */
static unsigned find_clear(uint64_t word, unsigned n) {
  uint64_t clear = ~word, starts = clear;
  for (unsigned i = 1; i < n; i++) starts &= clear >> i;
  return starts ? (unsigned)__builtin_ctzll(starts) : MOST_PAGES;
}

static uint64_t mask_of(unsigned from, unsigned n) {
  return (n == MOST_PAGES ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1) << from;
}

/* The page of a claimed block, or PAGES. */
static unsigned claim(unsigned n) {
  for (unsigned w = 0; w < WORDS; w++) {
    uint64_t word = atomic_load_explicit(&taken[w], memory_order_relaxed);
    for (unsigned at; (at = find_clear(word, n)) < MOST_PAGES;)
      if (atomic_compare_exchange_weak_explicit(&taken[w], &word, word | mask_of(at, n), memory_order_acquire,
                                                memory_order_relaxed))
        return w * MOST_PAGES + at;
  }
  return PAGES;
}

void *mu_nested_malloc(size_t size, size_t align) {
  char *base = reserved();
  size_t n = mu_max(mu_pages_for(size), 1);
  unsigned page;
  if (!base || size > PTRDIFF_MAX || n > MOST_PAGES || align > mu_arena.page_size ||
      (page = claim((unsigned)n)) == PAGES)
    return NULL;
  atomic_store_explicit(&length[page], (uint8_t)n, memory_order_relaxed);
  return base + ((size_t)page << mu_arena.page_shift);
}

/* The page that p is in; PAGES: none of them. */
static size_t page_of(const void *p) {
  const char *base = atomic_load_explicit(&range, memory_order_relaxed);
  size_t page = base ? (size_t)((uintptr_t)p - (uintptr_t)base) >> mu_arena.page_shift : PAGES;
  return page < PAGES ? page : PAGES;
}

static bool is_start(const void *p) {
  return ((uintptr_t)p & (mu_arena.page_size - 1)) == 0;
}

size_t mu_nested_usable(const void *p) {
  size_t page = page_of(p);
  if (page == PAGES || !is_start(p)) return 0;
  return (size_t)atomic_load_explicit(&length[page], memory_order_relaxed) << mu_arena.page_shift;
}

bool mu_nested_free(void *p) {
  size_t page = page_of(p);
  if (page == PAGES) return false;
  unsigned n = is_start(p) ? atomic_exchange_explicit(&length[page], 0, memory_order_relaxed) : 0;
  if (!n) {
    mu_misuse("free(%p): not the start of an allocation, or freed before", p);
    return true;
  }
  if (n > 1) mu_madvise(p, (size_t)n << mu_arena.page_shift, MADV_DONTNEED);
  /* release: whoever claims it comes after what was done with it */
  atomic_fetch_and_explicit(&taken[page / MOST_PAGES], ~mask_of((unsigned)(page % MOST_PAGES), n),
                            memory_order_release);
  return true;
}

/* ---- what is freed later: each has the address of the next in its first bytes ---- */

void mu_nested_defer(void *p) {
  void *head = atomic_load_explicit(&mu_nested_deferred, memory_order_relaxed);
  do *(void **)p = head;
  while (!atomic_compare_exchange_weak_explicit(&mu_nested_deferred, &head, p, memory_order_release,
                                                memory_order_relaxed));
}

void mu_nested_settle(void) {
  void *p = atomic_exchange_explicit(&mu_nested_deferred, NULL, memory_order_acquire), *next;
  for (; p; p = next) {
    next = *(void **)p;
    mu_free(p);
  }
}
