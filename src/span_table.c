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

/* Blocks for thin tables: four sizes to a doubling, so that at most a fifth of one is lost. Under the lock of the
 * slabs.
 */
enum { THIN_LOG = 6, THIN_SIZES = 36 };
static struct {
  struct slab *with_room[THIN_SIZES];
  bool lost; /* in a child: what there is stays in use */
} thin;

/* Each class's first table. They lie side by side and are kept, so that a small process needs few pages for them. */
MU_EARLY static struct {
  void *table;
  bool used;
} first[MU_CLASSES];

/* Unused slabs have no memory, but for one in many, which has the numbers of the others. */
struct unused {
  struct unused *next;
  uint32_t count;
  uint32_t slabs[];
};

MU_EARLY static struct {
  size_t bytes;     /* of a slab: a power of two */
  size_t top;       /* slabs of the region handed out at least once */
  size_t committed; /* bytes of the region */
  struct unused *unused;
} region;

struct mu_lock mu_span_table_lock = MU_LOCK_INIT(MU_RANK_TABLES);

void mu_span_tables_lost(void) {
  region.unused = NULL;
  thin.lost = true;
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

static void *slab_unused(void) {
  struct unused *list = region.unused;
  if (list->count) return mu_arena.span_tables + list->slabs[--list->count] * region.bytes;
  region.unused = list->next;
  return list;
}

static struct slab *slab_get_locked(void) {
  if (!region.bytes) region.bytes = slab_bytes();
  void *slab = region.unused ? slab_unused() : slab_from_top();
  if (slab) memset(slab, 0, sizeof(struct slab));
  return slab;
}

static struct slab *slab_get(void) {
  mu_lock_take(&mu_span_table_lock);
  struct slab *slab = slab_get_locked();
  mu_lock_release(&mu_span_table_lock);
  return slab;
}

/* One that is on no list, or NULL. */
static void slab_put(struct slab *slab) {
  if (!slab) return;
  mu_madvise(slab, region.bytes, MADV_DONTNEED);
  mu_lock_take(&mu_span_table_lock);
  struct unused *list = region.unused;
  if (list && list->count < (mu_arena.page_size - sizeof *list) / sizeof *list->slabs) {
    list->slabs[list->count++] = (uint32_t)((size_t)((char *)slab - mu_arena.span_tables) / region.bytes);
  } else {
    region.unused = (struct unused *)(void *)slab;
    *region.unused = (struct unused){.next = list};
  }
  mu_lock_release(&mu_span_table_lock);
}

static void link_slab(struct slab **list, struct slab *slab) {
  slab->prev = NULL;
  slab->next = *list;
  if (slab->next) slab->next->prev = slab;
  *list = slab;
}

static void unlink_slab(struct slab **list, struct slab *slab) {
  *(slab->prev ? &slab->prev->next : list) = slab->next;
  if (slab->next) slab->next->prev = slab->prev;
}

static uint32_t capacity(size_t block) {
  return (uint32_t)((region.bytes - HEADER) / block);
}

MU_AT_START static void *first_table(unsigned c, size_t block) {
  if (first[c].used) return NULL;
  if (!first[c].table) first[c].table = mu_meta_alloc(block);
  first[c].used = first[c].table;
  return first[c].table;
}

static struct slab *slab_of(const void *block) {
  size_t offset = (size_t)((const char *)block - mu_arena.span_tables);
  return (struct slab *)(void *)(mu_arena.span_tables + mu_round_down(offset, region.bytes));
}

/* A block of the slab, which leaves the list when it is full. */
static void *block_of(struct slab **list, struct slab *slab, size_t block) {
  void *at = slab->free;
  if (at)
    memcpy(&slab->free, at, sizeof slab->free);
  else
    at = (char *)slab + HEADER + slab->fresh++ * block;
  if (++slab->used == capacity(block)) unlink_slab(list, slab);
  return at;
}

/* Gives a block back. Returns its slab when it is empty now, off the list. */
static struct slab *block_free(struct slab **list, void *at, size_t block) {
  struct slab *slab = slab_of(at);
  memcpy(at, &slab->free, sizeof slab->free);
  slab->free = at;
  if (slab->used-- == capacity(block)) link_slab(list, slab);
  if (slab->used) return NULL;
  unlink_slab(list, slab);
  return slab;
}

enum { LOOKS = 32 }; /* at slabs, for one that is fuller */

/* A block of a slab that is fuller than the one it is in, of which a quarter or more is unused; or NULL. Each such move
 * makes full ones fuller and the others emptier, so there is an end to them, and emptied ones go back. */
static void *better_block(struct slab **list, const void *at, size_t block) {
  const struct slab *own = slab_of(at);
  struct slab *best = NULL, *other = *list;
  if (own->used * 4 > capacity(block) * 3) return NULL;
  for (int i = 0; i < LOOKS && other; i++, other = other->next)
    if (other != own && other->used >= (best ? best->used : own->used)) best = other;
  return best ? block_of(list, best, block) : NULL;
}

MU_AT_START void *mu_span_table_alloc(unsigned c) {
  size_t block = mu_table_bytes(c);
  void *kept = first_table(c, block);
  if (kept) return memset(kept, 0, block);
  if (!with_room[c]) {
    struct slab *slab = slab_get();
    if (!slab) return NULL;
    link_slab(&with_room[c], slab);
  }
  return memset(block_of(&with_room[c], with_room[c], block), 0, block);
}

void mu_span_table_free(unsigned c, void *table) {
  if (table == first[c].table) {
    first[c].used = false;
    return;
  }
  slab_put(block_free(&with_room[c], table, mu_table_bytes(c)));
}

void *mu_span_table_move(unsigned c, void *table) {
  size_t block = mu_table_bytes(c);
  if (table == first[c].table) return table;
  void *better = better_block(&with_room[c], table, block);
  if (!better) return table;
  memcpy(better, table, block);
  mu_span_table_free(c, table);
  return better;
}

/* ---- thin ones --------------------------------------------------------------------------------------------------- */

static unsigned thin_size(size_t bytes) {
  bytes = mu_max(bytes, (size_t)1 << THIN_LOG) - 1;
  unsigned log = mu_log2(bytes);
  if (log < THIN_LOG) return 0;
  return (log - THIN_LOG) * 4 + (unsigned)(bytes >> (log - 2) & 3) + 1;
}

static size_t thin_bytes(unsigned size) {
  return (size_t)(4 + size % 4) << (THIN_LOG - 2 + size / 4);
}

size_t mu_thin_block_bytes(size_t bytes) {
  return thin_bytes(thin_size(bytes));
}

void *mu_thin_block_alloc(size_t bytes) {
  unsigned n = thin_size(bytes);
  void *block = NULL;
  mu_lock_take(&mu_span_table_lock);
  struct slab *slab = n < THIN_SIZES && !thin.lost ? thin.with_room[n] : NULL;
  if (!slab && n < THIN_SIZES && !thin.lost && (slab = slab_get_locked())) link_slab(&thin.with_room[n], slab);
  if (slab) block = block_of(&thin.with_room[n], slab, thin_bytes(n));
  mu_lock_release(&mu_span_table_lock);
  return block;
}

/* Returns what slab_put is to have, without the lock. */
static struct slab *thin_free_locked(void *block, unsigned n) {
  return thin.lost ? NULL : block_free(&thin.with_room[n], block, thin_bytes(n));
}

void mu_thin_block_free(void *block, size_t bytes) {
  mu_lock_take(&mu_span_table_lock);
  struct slab *empty = thin_free_locked(block, thin_size(bytes));
  mu_lock_release(&mu_span_table_lock);
  slab_put(empty);
}

void *mu_thin_block_move(void *block, size_t bytes) {
  unsigned n = thin_size(bytes);
  mu_lock_take(&mu_span_table_lock);
  void *better = thin.lost ? NULL : better_block(&thin.with_room[n], block, thin_bytes(n));
  struct slab *empty = NULL;
  if (better) {
    memcpy(better, block, bytes);
    empty = thin_free_locked(block, n);
  }
  mu_lock_release(&mu_span_table_lock);
  slab_put(empty);
  return better ? better : block;
}
