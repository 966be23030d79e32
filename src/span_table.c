/* SPDX-License-Identifier: Apache-2.0 */
#include "src/span_table.h"
#include "src/arena.h"
#include "src/sys.h"
#include <string.h>
#include <sys/mman.h>

struct slab {
  struct slab *next, *prev; /* of the class, while it has room */
  void *free;               /* list of blocks, through their first word */
  uint32_t used, fresh;     /* blocks in use; blocks never used yet start here */
};
enum { HEADER = 64 };
_Static_assert(sizeof(struct slab) <= HEADER, "blocks start behind the header");

static struct slab *with_room[MU_CLASSES];

/* Each class's first table. They lie side by side and are kept, so that a small process needs few pages for them. */
static struct {
  void *table;
  bool used;
} first[MU_CLASSES];

static struct {
  size_t bytes;     /* of a slab: a power of two */
  size_t top;       /* slabs of the region handed out at least once */
  size_t committed; /* bytes of the region */
  void *free;       /* list of slabs, through their first word */
} region;

struct mu_lock mu_span_table_lock = MU_LOCK_INIT(MU_RANK_TABLES);

void mu_span_tables_lost(void) {
  region.free = NULL;
}

void mu_span_table_class_lost(unsigned c) {
  with_room[c] = NULL;
  first[c].used = true;
}

/* Four of the largest blocks fit, so that little is lost at the end. */
static size_t slab_bytes(void) {
  size_t largest = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++) largest = mu_max(largest, mu_table_bytes(c));
  return (size_t)1 << (mu_log2(HEADER + 4 * largest - 1) + 1);
}

static void *slab_from_top(void) {
  size_t end = (region.top + 1) * region.bytes;
  if (end > mu_arena.span_tables_bytes) return NULL;
  if (end > region.committed) {
    size_t to = mu_min(mu_max(end, region.committed + ((size_t)1 << 18)), mu_arena.span_tables_bytes);
    if (mu_mprotect(mu_arena.span_tables + region.committed, to - region.committed, PROT_READ | PROT_WRITE))
      return NULL;
    region.committed = to;
  }
  return mu_arena.span_tables + region.top++ * region.bytes;
}

static struct slab *slab_get(void) {
  mu_lock_take(&mu_span_table_lock);
  if (!region.bytes) region.bytes = slab_bytes();
  void *slab = region.free;
  if (slab)
    memcpy(&region.free, slab, sizeof region.free);
  else
    slab = slab_from_top();
  mu_lock_release(&mu_span_table_lock);
  if (slab) memset(slab, 0, sizeof(struct slab));
  return slab;
}

static void slab_put(struct slab *slab) {
  mu_madvise(slab, region.bytes, MADV_DONTNEED);
  mu_lock_take(&mu_span_table_lock);
  memcpy(slab, &region.free, sizeof region.free);
  region.free = slab;
  mu_lock_release(&mu_span_table_lock);
}

static void link_slab(unsigned c, struct slab *slab) {
  slab->prev = NULL;
  slab->next = with_room[c];
  if (slab->next) slab->next->prev = slab;
  with_room[c] = slab;
}

static void unlink_slab(unsigned c, struct slab *slab) {
  *(slab->prev ? &slab->prev->next : &with_room[c]) = slab->next;
  if (slab->next) slab->next->prev = slab->prev;
}

static uint32_t capacity(size_t block) {
  return (uint32_t)((region.bytes - HEADER) / block);
}

static void *first_table(unsigned c, size_t block) {
  if (first[c].used) return NULL;
  if (!first[c].table) first[c].table = mu_meta_alloc(block);
  first[c].used = first[c].table;
  return first[c].table;
}

void *mu_span_table_alloc(unsigned c) {
  size_t block = mu_table_bytes(c);
  void *kept = first_table(c, block);
  if (kept) return memset(kept, 0, block);
  struct slab *slab = with_room[c];
  if (!slab) {
    if (!(slab = slab_get())) return NULL;
    link_slab(c, slab);
  }
  void *table = slab->free;
  if (table)
    memcpy(&slab->free, table, sizeof slab->free);
  else
    table = (char *)slab + HEADER + slab->fresh++ * block;
  if (++slab->used == capacity(block)) unlink_slab(c, slab);
  return memset(table, 0, block);
}

void mu_span_table_free(unsigned c, void *table) {
  if (table == first[c].table) {
    first[c].used = false;
    return;
  }
  size_t block = mu_table_bytes(c);
  size_t offset = (size_t)((char *)table - mu_arena.span_tables);
  struct slab *slab = (struct slab *)(void *)(mu_arena.span_tables + mu_round_down(offset, region.bytes));
  memcpy(table, &slab->free, sizeof slab->free);
  slab->free = table;
  if (slab->used-- == capacity(block)) link_slab(c, slab);
  if (slab->used == 0) {
    unlink_slab(c, slab);
    slab_put(slab);
  }
}
