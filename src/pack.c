/* SPDX-License-Identifier: Apache-2.0 */
#include "src/pack.h"
#include "src/arena.h"
#include "src/mesh_files.h"
#include "src/numa.h"
#include "src/sys.h"
#include <errno.h>
#include <sys/mman.h>
#include <sys/resource.h>

/* Each open pack costs a descriptor of the mesher's own table, of which even small limits leave some dozens. More of
 * them take more objects before they are sealed. */
enum { SOME_PACKS = 48, MOST_PACKS = 96, SHARE_OF_DESCRIPTORS = 4 };

struct mu_pack *mu_packs;

void *mu_scratch_alloc(size_t bytes) {
  int err;
  bytes = mu_round_up(mu_max(bytes, 1), mu_arena.page_size);
  void *p = mu_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
  if (p) mu_madvise(p, bytes, MADV_DONTFORK);
  return p;
}

void mu_scratch_free(void *p, size_t bytes) {
  if (p) mu_munmap(p, mu_round_up(mu_max(bytes, 1), mu_arena.page_size));
}

static void settle_ahead(void);

static void destroy(struct mu_pack *pack) {
  settle_ahead();
  mu_file_closed(pack->number);
  mu_file_seal(&pack->file);
  mu_scratch_free(pack, pack->map_bytes);
}

/* Bytes of its units' slots that nothing was written to: what sealing it loses. */
static size_t room_in(const struct mu_pack *pack) {
  const struct mu_size_class *k = &mu_classes[pack->size_class];
  size_t slots = (size_t)pack->founded * (pack->unit_pages / k->span_pages) * k->slots, written = 0;
  for (uint32_t u = 0; u < pack->founded; u++) written += pack->live[u];
  return (slots - written) * k->size;
}

/* The one with the least room, the oldest of such. False when a plan refers to all of them. */
static bool seal_one(void) {
  struct mu_pack **best = NULL;
  size_t least = SIZE_MAX, room;
  for (struct mu_pack **at = &mu_packs; *at; at = &(*at)->next)
    if (!(*at)->pinned && (room = room_in(*at)) <= least) best = at, least = room;
  if (!best) return false;
  struct mu_pack *pack = *best;
  *best = pack->next;
  destroy(pack);
  return true;
}

static unsigned most_packs(void) {
  struct rlimit limit;
  if (mu_sys_call(MU_SYS_prlimit64, 0, RLIMIT_NOFILE, 0, (long)&limit, 0, 0) < 0) return SOME_PACKS;
  return (unsigned)mu_min(mu_max(limit.rlim_cur / SHARE_OF_DESCRIPTORS, SOME_PACKS), MOST_PACKS);
}

static unsigned count(void) {
  unsigned n = 0;
  for (const struct mu_pack *p = mu_packs; p; p = p->next) n++;
  return n;
}

void mu_packs_begin_plan(unsigned size_class, unsigned unit_pages) {
  unsigned most = most_packs();
  while (count() + MU_MAX_PLAN_FILES > most && seal_one()) {
  }
  for (struct mu_pack *p = mu_packs; p; p = p->next)
    p->pinned = p->size_class == size_class && p->unit_pages == unit_pages;
}

void mu_packs_end_plan(void) {
  for (struct mu_pack *p = mu_packs; p; p = p->next) p->pinned = false;
}

struct mu_pack *mu_pack_create(unsigned size_class, unsigned unit_pages, unsigned words, uint32_t units) {
  size_t pages = (size_t)units * unit_pages, made = (pages + 63) / 64;
  size_t bytes = sizeof(struct mu_pack) + ((size_t)units * words + 2 * made) * 8 + units * 4UL;
  if (count() >= most_packs() && !seal_one()) return NULL;
  struct mu_pack *pack = mu_scratch_alloc(bytes);
  if (!pack) return NULL;
  *pack = (struct mu_pack){.size_class = (uint8_t)size_class,
                           .unit_pages = (uint8_t)unit_pages,
                           .words = (uint16_t)words,
                           .units = units,
                           .pinned = true,
                           .map_bytes = bytes};
  pack->bits = (uint64_t *)(void *)(pack + 1);
  pack->made = pack->bits + (size_t)units * words;
  pack->used = pack->made + made;
  pack->live = (uint32_t *)(void *)(pack->used + made);
  int r = mu_file_create(&pack->file, pages << mu_arena.page_shift);
  while (r == -EMFILE && seal_one()) r = mu_file_create(&pack->file, pages << mu_arena.page_shift);
  if (r == 0 && !(pack->number = mu_file_new(size_class, unit_pages))) {
    mu_file_seal(&pack->file);
    r = -ENFILE;
  }
  if (r < 0) {
    mu_scratch_free(pack, bytes);
    return NULL;
  }
  pack->next = mu_packs;
  mu_packs = pack;
  return pack;
}

void mu_pack_set_node(struct mu_pack *pack, unsigned node) {
  pack->node = mu_file_at(pack->number)->node = (uint8_t)node;
  if (mu_numa_nodes() > 1) mu_numa_prefer(pack->file.window, pack->file.bytes, node);
}

static uint64_t missing_pages(const struct mu_pack *pack, size_t first, uint64_t mask) {
  uint64_t missing = 0;
  for (; mask; mask &= mask - 1) {
    unsigned i = (unsigned)__builtin_ctzll(mask);
    if (!mu_bit(pack->made, (uint32_t)(first + i))) missing |= (uint64_t)1 << i;
  }
  return missing;
}

static void mark_made(struct mu_pack *pack, size_t page, unsigned n) {
  for (unsigned k = 0; k < n; k++) mu_bit_set(pack->made, (uint32_t)(page + k));
  mu_file_add_pages(pack->number, n);
}

/* Takes the lowest stretch of set bits off the mask: returns its length, sets *from. */
static unsigned next_stretch(uint64_t *mask, unsigned *from) {
  unsigned n = 0, at = *from = (unsigned)__builtin_ctzll(*mask);
  for (; at < 64 && (*mask >> at & 1); at++, n++) *mask &= ~((uint64_t)1 << at);
  return n;
}

/* What was begun and not waited for; at most one run's pages. */
static struct {
  struct mu_pack *pack;
  size_t first;
  uint64_t mask;
} ahead;

static void settle_ahead(void) {
  if (!ahead.mask || mu_file_prepare_wait() != 0) ahead.mask = 0;
  while (ahead.mask) {
    unsigned from, n = next_stretch(&ahead.mask, &from);
    mark_made(ahead.pack, ahead.first + from, n);
  }
}

void mu_pack_prepare_ahead(struct mu_pack *pack, size_t first, uint64_t mask) {
  settle_ahead();
  ahead.pack = pack;
  ahead.first = first;
  for (uint64_t missing = missing_pages(pack, first, mask); missing;) {
    unsigned from, n = next_stretch(&missing, &from);
    if (!mu_file_prepare_begin(&pack->file, (first + from) << mu_arena.page_shift, (size_t)n << mu_arena.page_shift))
      return;
    ahead.mask |= (n == 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1) << from;
  }
}

bool mu_pack_prepare(struct mu_pack *pack, size_t first, uint64_t mask) {
  if (ahead.mask) settle_ahead();
  for (uint64_t missing = missing_pages(pack, first, mask); missing;) {
    unsigned from, n = next_stretch(&missing, &from);
    if (mu_file_prepare(&pack->file, (first + from) << mu_arena.page_shift, (size_t)n << mu_arena.page_shift) < 0)
      return false;
    mark_made(pack, first + from, n);
  }
  return true;
}

void mu_pack_note_used(struct mu_pack *pack, size_t first, uint64_t mask) {
  for (; mask; mask &= mask - 1) mu_bit_set(pack->used, (uint32_t)(first + (unsigned)__builtin_ctzll(mask)));
}

static void unmake_unused(struct mu_pack *pack) {
  size_t pages = (size_t)pack->units * pack->unit_pages;
  for (size_t word = 0; word * 64 < pages; word++)
    for (uint64_t idle = pack->made[word] & ~pack->used[word]; idle;) {
      unsigned from, n = next_stretch(&idle, &from);
      uint64_t at = (word * 64 + from) << mu_arena.page_shift;
      if (mu_file_unmake(&pack->file, at, (size_t)n << mu_arena.page_shift) < 0) return;
      pack->made[word] &= ~((n == 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1) << from);
      mu_file_take_pages(pack->number, n);
    }
}

void mu_packs_unmake_unused(void) {
  settle_ahead();
  for (struct mu_pack *pack = mu_packs; pack; pack = pack->next) unmake_unused(pack);
}

void mu_packs_seal_unused(void) {
  for (struct mu_pack **at = &mu_packs; *at;) {
    struct mu_pack *pack = *at;
    const struct mu_file_record *record = mu_file_at(pack->number);
    if (pack->founded && !record->victim && mu_file_units(record)) {
      at = &pack->next;
      continue;
    }
    *at = pack->next;
    destroy(pack);
  }
}

void mu_packs_seal_all(void) {
  while (mu_packs) {
    struct mu_pack *next = mu_packs->next;
    destroy(mu_packs);
    mu_packs = next;
  }
}

void mu_packs_forget(void) {
  mu_files_close_all();
  ahead.mask = 0;
  mu_packs = NULL;
}
