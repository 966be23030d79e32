/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which units mesh: a pure function of bitmaps. Calls nothing, allocates nothing, keeps nothing.
 *
 * Offered are `runs` runs of `units_per_run` units each; unit u of run r has number r * units_per_run + u. Besides,
 * there are `targets` packed units from earlier passes. Every unit gets a choice: join one packed unit whose slots are
 * disjoint from its own, or stay. A run is either evacuated (each of its units joins or stays), or an anchor: then all
 * its units become new packed units, in order, which others may join.
 */
#ifndef MU_MESH_SEARCH_H
#define MU_MESH_SEARCH_H

#include "src/room_index.h"

enum { MU_UNIT_STAYS = UINT32_MAX };

enum mu_run_role {
  MU_RUN_STAYS = 0, /* nothing of it meshes */
  MU_RUN_ANCHOR,    /* unit u of it becomes packed unit anchor_base[r] + u */
  MU_RUN_EVACUATED, /* choice[] of each unit says where it goes, or MU_UNIT_STAYS */
};

struct mu_mesh_search {
  /* in */
  uint32_t runs, units_per_run;
  uint32_t words;        /* 64-bit words of a unit's bitmap */
  uint32_t unit_pages;   /* pages of a unit */
  const uint64_t *live;  /* [runs * units_per_run * words] set bits: live slots */
  const uint32_t *pages; /* [runs * units_per_run] resident pages that are given back if this unit joins another */
  const uint64_t *empty; /* [runs] bit u: unit u has no live slot, and may go along with its neighbours; or NULL */
  uint32_t targets;      /* packed units that exist already */
  uint32_t probes;       /* packed units looked at for each unit, in multiples of MU_ROOM_CHUNK */
  uint64_t seed;         /* any value; the same seed gives the same plan */
  /* An anchor run costs copying all its units and a mapping, an evacuated unit costs a mapping: a plan keeps an anchor
   * only if the pages given back by units that join it are at least this many, and a joiner only if it gives back at
   * least min_pages_per_join pages. */
  uint32_t min_pages_per_anchor, min_pages_per_join;

  /* in and out: the packed units' bitmaps, [(targets + runs * units_per_run) * words]; the first `targets` come filled
   */
  uint64_t *packed;
  uint32_t *packed_live; /* [targets + runs * units_per_run] population counts of packed[], likewise */

  /* out */
  uint32_t *choice;      /* [runs * units_per_run] number of the packed unit, or MU_UNIT_STAYS */
  uint8_t *role;         /* [runs] enum mu_run_role */
  uint32_t *anchor_base; /* [runs] first packed unit of an anchor run */
  uint32_t founded;      /* packed units added by anchor runs, without holes: packed[] is valid to targets + founded */
  uint64_t pages_saved;  /* sum of pages[] over units that join */

  /* scratch, contents undefined before and after: [runs * units_per_run] each */
  uint32_t *order, *work;
  uint64_t *rows; /* mu_room_index_words(targets + runs * units_per_run, words) */
};

/* Makes the plan. Time is near-linear in units * probes. Nobody joins a packed unit with no live slot: it has no page
 * yet, so nothing would be gained. Units with no live slot, or that give back no page, stay. */
void mu_mesh_search(struct mu_mesh_search *s);

#endif
