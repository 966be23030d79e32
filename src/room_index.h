/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of many packed units have room for a unit: their bitmaps turned on their side. For each slot there is a row
 * with one bit for each packed unit, set where the slot is free, so that ANDing the rows of a unit's live slots tells
 * of 512 packed units at once, in one cache line a row, whether the unit fits. Pure: calls nothing, allocates nothing.
 */
#ifndef MU_ROOM_INDEX_H
#define MU_ROOM_INDEX_H

#include <stddef.h>
#include <stdint.h>

enum { MU_ROOM_CHUNK = 512 }; /* packed units that lie side by side */

struct mu_room_index {
  uint64_t
      *rows; /* [chunks][slots + 1][MU_ROOM_CHUNK / 64]; the last row of a chunk: packed units that may be joined */
  uint32_t words;      /* of a packed unit's bitmap */
  uint32_t first, end; /* packed units indexed */
};

/* Words that rows[] needs for n packed units. */
size_t mu_room_index_words(uint32_t n, uint32_t words);
/* Indexes packed units first to end - 1; those with no live slot may not be joined. */
void mu_room_index_build(struct mu_room_index *x, const uint64_t *packed, const uint32_t *live, uint32_t first,
                         uint32_t end);
/* The slots of `bits` are no longer free in this packed unit, or are free again. */
void mu_room_index_take(struct mu_room_index *x, uint32_t packed, const uint64_t *bits);
void mu_room_index_release(struct mu_room_index *x, uint32_t packed, const uint64_t *bits);
/* Finds packed units that have room for `bits`, at most `most`, looking at `probes` or some more from chunk number
 * `start` on, round about. Returns how many. Only the first 512
 * live slots are looked at: of fuller units some of what is found may have no room after all. */
uint32_t mu_room_index_find(const struct mu_room_index *x, const uint64_t *bits, uint32_t start, uint32_t probes,
                            uint32_t *found, uint32_t most);

static inline uint32_t mu_room_index_chunks(const struct mu_room_index *x) {
  return (x->end - x->first + MU_ROOM_CHUNK - 1) / MU_ROOM_CHUNK;
}

#endif
