/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packs: mesh files that can still take objects, with the bitmaps of what was ever written to each packed unit. A set
 * bit stays set: a slot is written once, since a forked child may still read it. Mesher thread only.
 */
#ifndef MU_PACK_H
#define MU_PACK_H

#include "src/common.h"
#include "uffd/engine.h"

struct mu_pack {
  struct mu_mesh_file file;
  uint32_t number; /* of its record */
  uint8_t size_class;
  uint8_t unit_pages;
  uint8_t node;         /* of the machine: what it takes comes from there */
  uint16_t words;       /* of a unit's bitmap */
  bool pinned;          /* a plan refers to it */
  uint32_t units;       /* capacity */
  uint32_t founded;     /* units that exist */
  uint64_t *bits;       /* [units * words] */
  uint32_t *live;       /* [units] population counts */
  uint64_t *made;       /* a bit a page of the file: it has memory */
  uint64_t *used;       /* the same: something was written to it, and it stays as it is */
  size_t map_bytes;     /* of the allocation that holds the four */
  struct mu_pack *next; /* newest first */
};

extern struct mu_pack *mu_packs;

enum { MU_MAX_PLAN_FILES = 25 }; /* that one plan may make */

/* Between these two, packs of that shape and those that are made are not sealed to make room for others. */
void mu_packs_begin_plan(unsigned size_class, unsigned unit_pages);
void mu_packs_end_plan(void);

/* A new pack of at least `units` units at the head of the list, or NULL. Seals the fullest when there are too many. */
struct mu_pack *mu_pack_create(unsigned size_class, unsigned unit_pages, unsigned words, uint32_t units);
/* Has its memory come from a node of the machine, as only that of objects which are there is packed in it. */
void mu_pack_set_node(struct mu_pack *pack, unsigned node);
/* Makes file pages for the pages of `mask` (bit i: page first + i of the file) that have none yet. */
bool mu_pack_prepare(struct mu_pack *pack, size_t first, uint64_t mask);
/* Begins to, so that they are there when they are needed. */
void mu_pack_prepare_ahead(struct mu_pack *pack, size_t first, uint64_t mask);
/* Notes that something was written to these pages. */
void mu_pack_note_used(struct mu_pack *pack, size_t first, uint64_t mask);
/* File pages that were made, and to which nothing was written then, go back: nobody looks at them. */
void mu_packs_unmake_unused(void);
/* Seals and frees those that no unit shows, and those that are being emptied. */
void mu_packs_seal_unused(void);
/* Seals and frees all of them; a child forgets them. */
void mu_packs_seal_all(void);
void mu_packs_forget(void);

/* Memory for the mesher's own use: not inherited by children. NULL when out. */
void *mu_scratch_alloc(size_t bytes);
void mu_scratch_free(void *p, size_t bytes);

#endif
