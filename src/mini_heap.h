/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Metadata, all of it outside the arena.
 *
 * A MiniHeap is what is known of a span. The MiniHeaps of a run stand side by side in one table, which is made with the
 * run and goes with it:
 *
 *      0      4      8       9     10      11       12     14      16
 *      | next | prev | state | bin | flags | exempt | live | stamp | bitmap ... (as many words as the class has) |
 *
 * Invariant, checked by the validator: live == popcount(bitmap); bits past the class's slots are clear.
 *
 * An extent is a range of free pages, or one large allocation; its record is kept for its first page (and, if it is
 * free, its last): with the run whose first or last page that is, else in a table by page number.
 */
#ifndef MU_MINI_HEAP_H
#define MU_MINI_HEAP_H

#include "src/common.h"

enum mu_state {
  MU_NONE = 0,     /* not the first page of anything */
  MU_SPAN_OPEN,    /* slots may be claimed */
  MU_SPAN_CLOSED,  /* in a pass, or being dropped: bits may only be cleared */
  MU_SPAN_MESHED,  /* shows a packed unit, or its own copy of one: bits may only be cleared */
  MU_EXTENT_DIRTY, /* free, may hold resident pages with old contents */
  MU_EXTENT_CLEAN, /* free, nothing resident, reads as zeros */
  MU_EXTENT_BUSY,  /* free, being dropped */
  MU_EXTENT_TAIL,  /* last page of a free extent of more than one page */
  MU_LARGE,        /* one allocation */
};

enum { MU_NO_PAGE = 0 }; /* page 0 of the arena is never handed out, so 0 ends lists */
enum { MU_NO_BIN = 0xff };

struct mu_mini_heap {
  uint32_t next, prev; /* page numbers of spans: the class's bin */
  uint8_t state;       /* enum mu_state: MU_SPAN_* */
  uint8_t bin;         /* which list it is on, MU_NO_BIN for none */
  uint8_t flags;       /* MU_MH_* */
  uint8_t exempt;      /* an object of it was exempted from meshing */
  uint16_t live;       /* set bits */
  uint16_t stamp;      /* empty: tick at which it became so, modulo 2^16; else the slot after the last one claimed */
  uint64_t bitmap[];
};

enum { MU_MAX_WORDS = 64 }; /* of a bitmap: 16-byte slots of 64 KiB pages */

enum {
  MU_MH_TOUCHED = 1, /* its pages may be resident */
  MU_MH_ALIGNED = 2, /* an object of it asked for an alignment of 512 or more */
  MU_MH_COVERED = 4, /* meshed without a live slot: a neighbour's mapping was stretched over it */
};

_Static_assert(sizeof(struct mu_mini_heap) == 16, "the layout drawn above");
/* 256 slots of 16 bytes in a page of 4 KiB */
_Static_assert(sizeof(struct mu_mini_heap) + 256 / 8 <= 64, "metadata is at most 64 bytes for a one-page span");

/* Where a meshed unit is: in the file of that number, the unit of that number. */
struct mu_packed_place {
  uint32_t file, unit;
};

struct mu_extent {
  uint32_t next, prev;   /* page numbers: the bin of its size */
  uint32_t older, newer; /* dirty ones by age */
  uint32_t pages;        /* length */
  uint32_t stamp;        /* tick at which it became dirty */
  uint8_t state;         /* enum mu_state */
  uint8_t moved;         /* large: came by mremap, its mapping does not merge with its neighbours' */
  uint8_t huge;          /* large: its mapping may have huge pages */
  uint8_t reserved[5];
};
_Static_assert(sizeof(struct mu_extent) == 32, "two to a cache line");

static inline bool mu_bit(const uint64_t *bitmap, uint32_t i) {
  return bitmap[i >> 6] >> (i & 63) & 1;
}
static inline void mu_bit_set(uint64_t *bitmap, uint32_t i) {
  bitmap[i >> 6] |= (uint64_t)1 << (i & 63);
}
static inline void mu_bit_clear(uint64_t *bitmap, uint32_t i) {
  bitmap[i >> 6] &= ~((uint64_t)1 << (i & 63));
}

#endif
