/* SPDX-License-Identifier: Apache-2.0 */
#include "src/pack.h"
#include "src/arena.h"
#include "src/mesher.h"
#include "src/sys.h"
#include <sys/mman.h>

/* Each open pack costs a descriptor of the mesher's own table, of which even small limits leave some dozens. */
enum { MAX_PACKS = 48 };

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

static void destroy(struct mu_pack *pack) {
  mu_file_seal(&pack->file);
  mu_scratch_free(pack, pack->map_bytes);
}

static void seal_oldest(void) {
  struct mu_pack **at = &mu_packs;
  while ((*at)->next) at = &(*at)->next;
  destroy(*at);
  *at = NULL;
}

static unsigned count(void) {
  unsigned n = 0;
  for (const struct mu_pack *p = mu_packs; p; p = p->next) n++;
  return n;
}

struct mu_pack *mu_pack_create(unsigned size_class, unsigned unit_pages, unsigned words, uint32_t units) {
  size_t pages = (size_t)units * unit_pages, made = (pages + 63) / 64;
  size_t bytes = sizeof(struct mu_pack) + ((size_t)units * words + made) * 8 + units * 4UL;
  if (count() >= MAX_PACKS) seal_oldest();
  struct mu_pack *pack = mu_scratch_alloc(bytes);
  if (!pack) return NULL;
  *pack = (struct mu_pack){.size_class = (uint8_t)size_class,
                           .unit_pages = (uint8_t)unit_pages,
                           .words = (uint16_t)words,
                           .units = units,
                           .map_bytes = bytes};
  pack->bits = (uint64_t *)(void *)(pack + 1);
  pack->made = pack->bits + (size_t)units * words;
  pack->live = (uint32_t *)(void *)(pack->made + made);
  if (mu_file_create(&pack->file, pages << mu_arena.page_shift) < 0) {
    mu_scratch_free(pack, bytes);
    return NULL;
  }
  pack->next = mu_packs;
  mu_packs = pack;
  return pack;
}

bool mu_pack_prepare(struct mu_pack *pack, size_t first, uint64_t mask) {
  uint64_t missing = 0;
  for (unsigned i = 0; mask >> i && i < 64; i++)
    if ((mask >> i & 1) && !mu_bit(pack->made, (uint32_t)(first + i))) missing |= (uint64_t)1 << i;
  while (missing) {
    unsigned i = (unsigned)__builtin_ctzll(missing), n = 0;
    for (; missing >> i & 1; i++, n++) missing &= missing - 1;
    size_t page = first + i - n;
    if (mu_file_prepare(&pack->file, page << mu_arena.page_shift, (size_t)n << mu_arena.page_shift) < 0) return false;
    for (unsigned k = 0; k < n; k++) mu_bit_set(pack->made, (uint32_t)(page + k));
    mu_count(&mu_mesher_counters.packed_bytes, (uint64_t)n << mu_arena.page_shift);
    if (i == 64) break;
  }
  return true;
}

void mu_packs_seal_all(void) {
  while (mu_packs) {
    struct mu_pack *next = mu_packs->next;
    destroy(mu_packs);
    mu_packs = next;
  }
}

void mu_packs_forget(void) {
  mu_packs = NULL;
}
