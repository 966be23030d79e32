/* SPDX-License-Identifier: Apache-2.0 */
#include "src/size_class.h"
#include "src/mini_heap.h"

MU_EARLY struct mu_size_class mu_classes[MU_CLASSES];
MU_EARLY uint8_t mu_class_table[MU_TABLE_MAX / 16 + 1];

/* Derived from nothing but trial: 12 KiB a refill and 24 KiB a vector keep a thread's hoard small and the class lock
 * rare. What swings further goes through the transfer cache, which is shared, and emptied when nobody needs it. */
enum { BATCH_BYTES = 12288, VECTOR_BYTES = 24576, MIN_CAP = 4, CACHE_BYTES = 1 << 18, MAX_CACHE = 1024 };
/* Of sizes above this a quarter: a growing buffer passes through twenty such classes, and leaves its share in each. */
enum { MANY_CLASSES = 1024 };

static uint32_t size_of_class(unsigned c) {
  if (c <= 8) return c * 16;
  unsigned doubling = (c - 9) / 4, step = (c - 9) % 4 + 1;
  return (128U << doubling) + step * (32U << doubling);
}

MU_AT_START static uint16_t span_pages(uint32_t size, size_t page) {
  if (size >= page) return MU_RUN_PAGES;
  uint16_t pages = 1, best = 1;
  size_t best_waste = page; /* in whole numbers: constants of doubles are on a page that small processes do not have */
  for (; pages <= MU_MAX_SPAN_PAGES; pages *= 2) {
    size_t bytes = pages * page, waste = bytes % size;
    if (bytes / size > page / 16) break; /* more slots than a MiniHeap's bitmap has bits */
    if (waste * best < best_waste * pages) best_waste = waste, best = pages;
    if (best_waste * 32 <= best * page) break;
  }
  return best;
}

MU_AT_START static void describe(struct mu_size_class *k, uint32_t size, size_t page) {
  k->size = size;
  k->magic = (((uint64_t)1 << 40) + size - 1) / size;
  k->span_pages = span_pages(size, page);
  k->spans_per_run = (uint16_t)(MU_RUN_PAGES / k->span_pages);
  k->slots = (uint16_t)(k->span_pages * page / size);
  k->words = (uint16_t)((k->slots + 63) / 64);
  k->meta = (uint16_t)(sizeof(struct mu_mini_heap) + k->words * sizeof(uint64_t));
  k->span_shift = (uint16_t)mu_log2(k->span_pages);
  k->batch = (uint16_t)mu_min(mu_max(BATCH_BYTES / size, 1), MU_MAX_BATCH);
  k->cap = (uint16_t)mu_min(mu_max(VECTOR_BYTES / size, MIN_CAP), MU_MAX_CAP);
  k->cache = (uint16_t)mu_min((size > MANY_CLASSES ? CACHE_BYTES / 4 : CACHE_BYTES) / size, MAX_CACHE);
  k->bin_magic = (((uint32_t)MU_FILL_BINS << 24) + k->slots - 1) / k->slots;
  k->meshable = size < page;
  k->spare_runs = k->meshable; /* the others' are made at the price of a few instructions */
}

MU_AT_START void mu_size_class_init(size_t page_size) {
  for (unsigned c = 1; c < MU_CLASSES; c++) describe(&mu_classes[c], size_of_class(c), page_size);
  unsigned c = 1;
  for (unsigned i = 1; i <= MU_TABLE_MAX / 16; i++) {
    while (mu_classes[c].size < i * 16) c++;
    mu_class_table[i] = (uint8_t)c;
  }
  mu_class_table[0] = 1; /* malloc(0) is a unique object too */
}
