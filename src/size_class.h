/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Size classes: multiples of 16 bytes to 128, then four to a doubling, to 32 KiB. Class 0 is none. A class's spans are
 * large enough that the tail which holds no slot is at most 1/32 of them where that can be had.
 */
#ifndef MU_SIZE_CLASS_H
#define MU_SIZE_CLASS_H

#include "src/common.h"

enum {
  MU_RUN_PAGES = 64,
  MU_MAX_SPAN_PAGES = 16, /* of a meshable class; the others' span is the run */
  MU_CLASSES = 41,        /* 1 to 40 */
  MU_MAX_SMALL = 32768,
  MU_TABLE_MAX = 1024, /* sizes up to this go through the table */
  MU_MAX_CAP = 384,    /* slots of a ShuffleVector */
  MU_MAX_BATCH = 96,   /* slots claimed at once */
  MU_FILL_BINS = 8,    /* a class's spans are kept apart by eighths of occupancy */
};

struct mu_size_class {
  uint32_t size;  /* bytes of a slot */
  uint64_t magic; /* ceil(2^40 / size): offset / size == offset * magic >> 40 for offsets below 2^22 */
  uint16_t span_pages, spans_per_run;
  uint16_t slots;      /* of a span */
  uint16_t words;      /* 64-bit words of its bitmap */
  uint16_t meta;       /* bytes of its MiniHeap */
  uint16_t span_shift; /* log2 of span_pages */
  uint16_t batch;      /* slots claimed at once by a thread */
  uint16_t cap;        /* slots a thread keeps at most */
  uint16_t cache;      /* slots the transfer cache keeps at most */
  uint16_t spare_runs; /* empty runs it keeps, so that one object at the edge does not make and unmake runs */
  uint32_t bin_magic;  /* ceil(2^24 * bins / slots), for which bin a span belongs on */
  bool meshable;       /* no object can contain a whole page */
};

extern struct mu_size_class mu_classes[MU_CLASSES];
extern uint8_t mu_class_table[MU_TABLE_MAX / 16 + 1];

void mu_size_class_init(size_t page_size);

/* The class for sizes above MU_TABLE_MAX, at most MU_MAX_SMALL. Four classes to a doubling: the two bits below the top
 * bit of size - 1 choose among them. */
static inline unsigned mu_class_of_medium(size_t size) {
  unsigned log = mu_log2(size - 1);
  return ((log - 7) << 2) + (unsigned)(((size - 1) >> (log - 2)) & 3) + 9;
}

/* 0 < size <= MU_MAX_SMALL */
static inline unsigned mu_class_of(size_t size) {
  return MU_LIKELY(size <= MU_TABLE_MAX) ? mu_class_table[(size + 15) >> 4] : mu_class_of_medium(size);
}

/* Whether a slot starts there: exact for offsets below 2^22, as the quotient is (the fraction of one that is not a
 * multiple is at least 1 / size, which is more than the error of magic can make it fall short of). */
static inline bool mu_starts_slot(const struct mu_size_class *c, size_t offset) {
  return ((offset * c->magic) & (((uint64_t)1 << 40) - 1)) < c->magic;
}

static inline uint32_t mu_slot_of(const struct mu_size_class *c, size_t offset) {
  return (uint32_t)((offset * c->magic) >> 40);
}

#endif
