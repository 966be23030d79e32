/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is known of each mesh file, sealed or not: how many units show it, and how much memory it holds. Its memory goes
 * with the last of them. A unit's place is kept in the MiniHeaps of its spans, which are on no list while meshed.
 */
#ifndef MU_MESH_FILES_H
#define MU_MESH_FILES_H

#include "src/common.h"

struct mu_file_record {
  _Atomic uint32_t refs;  /* units mapped onto it, and one while it is open */
  _Atomic uint32_t pages; /* that have memory */
  uint32_t live;          /* live slots of these units; mesher thread only, counted anew each time */
  uint8_t size_class;
  uint8_t open;   /* it can still take objects */
  uint8_t victim; /* being emptied */
  uint8_t unit_pages;
  uint8_t node;       /* of the machine that its memory comes from; mesher thread only */
  uint32_t once_live; /* slots that it took, or, once it was tried to empty it, those that were live then */
};

/* A new record; 0 when there is no room for one. Mesher thread only, as are open, live and victim. */
uint32_t mu_file_new(unsigned size_class, unsigned unit_pages);
/* Numbers are 1 to mu_file_top() - 1. */
uint32_t mu_file_top(void);
struct mu_file_record *mu_file_at(uint32_t number);
void mu_file_add_pages(uint32_t number, uint32_t pages);
void mu_file_take_pages(uint32_t number, uint32_t pages);
void mu_file_ref(uint32_t number);
void mu_file_unref(uint32_t number);
/* Nothing can be added any more. */
void mu_file_closed(uint32_t number);
/* In a forked child, which cannot add to any. */
void mu_files_close_all(void);
/* Units mapped onto it. Mesher thread only. */
static inline uint32_t mu_file_units(const struct mu_file_record *r) {
  return atomic_load_explicit(&r->refs, memory_order_relaxed) - r->open;
}
/* Memory of all files that units show, bytes. */
uint64_t mu_file_bytes(void);

#endif
