/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A MiniHeap: what is known of a span, or of an extent. One for each page of the arena, in a table outside of it; only
 * those of a span's or an extent's first page (and a free extent's last) are in use, all others are zero.
 *
 *      0        8      12     16     20     24     28     32                  stride (64 with 4 KiB pages)
 *      | next prev | state.. | live | stamp | pages | -  -  | bitmap ...      |
 *
 * Invariant, checked by the validator: live == popcount(bitmap); bits past the class's slots are clear.
 */
#ifndef MU_MINI_HEAP_H
#define MU_MINI_HEAP_H

#include "src/common.h"

enum mu_state {
  MU_NONE = 0,     /* not the first page of anything */
  MU_SPAN_OPEN,    /* slots may be claimed */
  MU_SPAN_CLOSED,  /* in a pass: bits may only be cleared */
  MU_SPAN_MESHED,  /* shows a packed unit, or its own copy of one: bits may only be cleared */
  MU_EXTENT_DIRTY, /* free, may hold resident pages with old contents */
  MU_EXTENT_CLEAN, /* free, nothing resident, reads as zeros */
  MU_EXTENT_BUSY,  /* free, being dropped */
  MU_EXTENT_TAIL,  /* last page of a free extent of more than one page */
  MU_LARGE,        /* one allocation */
};

enum { MU_NO_PAGE = 0 }; /* page 0 of the arena is never handed out, so 0 ends lists */

struct mu_mini_heap {
  uint32_t next, prev; /* page numbers: the class's bin, or the extents' bin */
  uint8_t state;       /* enum mu_state */
  uint8_t size_class;  /* spans */
  uint8_t bin;         /* which list it is on, MU_NO_BIN for none */
  uint8_t flags;       /* MU_MH_* */
  uint16_t live;       /* set bits */
  uint16_t exempt;     /* objects that mesh_uffd_exempt named */
  uint32_t stamp;      /* extents: tick at which it became dirty */
  uint32_t pages;      /* extents: length */
  uint32_t reserved[2];
  union {
    uint64_t bitmap[4]; /* the stride has room for page size / 16 bits */
    struct {
      uint32_t older, newer; /* dirty extents by age */
    } dirty;
  };
};

enum { MU_NO_BIN = 0xff };
enum {
  MU_MH_TOUCHED = 1, /* its pages may be resident */
  MU_MH_ALIGNED = 4, /* an object of it asked for an alignment of 512 or more */
  MU_MH_MOVED = 2,   /* large: came by mremap, its mapping does not merge with its neighbours' */
};

_Static_assert(offsetof(struct mu_mini_heap, bitmap) == 32, "the layout drawn above");
_Static_assert(sizeof(struct mu_mini_heap) == 64, "metadata is at most 64 bytes for a one-page span");

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
