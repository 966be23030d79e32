/* SPDX-License-Identifier: Apache-2.0 */
#include "src/huge.h"
#include "src/arena.h"
#include "src/options.h"
#include "src/sys.h"
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_COLD
#define MADV_COLD 20
#endif

enum { REGIONS = 1 << 19, BITS = 64 }; /* a reservation of 1 TiB */

/* Bit i: region i of the arena may have a huge page. Never cleared but where a region goes as a whole. */
static _Atomic uint64_t marks[REGIONS / BITS];

static _Atomic bool given; /* the kernel gives huge pages, or did */

bool mu_huge_wanted(size_t bytes) {
  return bytes >= MU_HUGE_BYTES && mu_options.huge_pages && mu_arena.page_size == 4096;
}

void mu_huge_look(void) {
  char text[64];
  if (mu_huge_given() || !mu_options.huge_pages) return;
  if (mu_options.huge_pages == 2 ||
      (mu_read_file("/sys/kernel/mm/transparent_hugepage/enabled", text, sizeof text) > 0 && strstr(text, "[always]")))
    atomic_store_explicit(&given, true, memory_order_relaxed);
}

bool mu_huge_given(void) {
  return atomic_load_explicit(&given, memory_order_relaxed);
}

static size_t region_of(const void *p) {
  return (size_t)((const char *)p - mu_arena.base) / MU_HUGE_BYTES;
}

void mu_huge_moved(const void *start, size_t len) {
  for (size_t r = region_of(start), end = region_of((const char *)start + len - 1); r <= end; r++)
    atomic_fetch_or_explicit(&marks[r / BITS], (uint64_t)1 << r % BITS, memory_order_relaxed);
}

static bool is_marked(size_t region) {
  return atomic_load_explicit(&marks[region / BITS], memory_order_relaxed) >> region % BITS & 1;
}

bool mu_huge_map(void *start, size_t len) {
  if (!mu_mmap_over(start, len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) return false;
  if (mu_options.huge_pages == 2) mu_madvise(start, len, MADV_HUGEPAGE);
  mu_huge_moved(start, len);
  return true;
}

void mu_huge_end(void *start, size_t len) {
  mu_madvise(start, len, MADV_NOHUGEPAGE);
}

bool mu_huge_in(const void *start, size_t len) {
  for (size_t r = region_of(start), end = region_of((const char *)start + len - 1); r <= end; r++)
    if (is_marked(r)) return true;
  return false;
}

/* MADV_COLD of a part of a huge page divides it; that of the whole does not. */
void mu_huge_divide(void *start, size_t len) {
  if (!mu_huge_given()) return;
  char *at = start, *end = at + len, *next;
  for (; at < end; at = next) {
    next = mu_arena.base + (region_of(at) + 1) * MU_HUGE_BYTES;
    if (next > end) next = end;
    if (next - at < MU_HUGE_BYTES && is_marked(region_of(at))) mu_madvise(at, (size_t)(next - at), MADV_COLD);
  }
}
