/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Thin tables: of a meshed run most spans may have no live slot left. Then the table of its MiniHeaps gives way to one
 * that has entries only for the others, in order, behind an index:
 *
 *      | number of its entry, or 0, for each span of the run | MiniHeap | MiniHeap | ...
 *
 * A span without an entry is meshed and covered, has no live slot, and shows the place that follows the one before it:
 * where that is not so it has an entry. So the first span always has one. All under the class lock; made and undone by
 * the mesher alone.
 */
#ifndef MU_THIN_TABLE_H
#define MU_THIN_TABLE_H

#include "src/arena.h"

/* Whether a thin table of so many entries is worth having; `now`: the entries of the thin one there is, or 0. */
bool mu_thin_pays(const struct mu_size_class *k, unsigned entries, unsigned now);
/* How many entries the run needs. Spans that are meshed and have no live slot are marked as covered. */
unsigned mu_thin_entries(const struct mu_run *run, const struct mu_size_class *k);
/* A thin table with what there is to say of the run; NULL when there is no memory. */
char *mu_thin_table_make(const struct mu_run *run, const struct mu_size_class *k, unsigned entries);
void mu_thin_table_free(const struct mu_size_class *k, char *table, unsigned entries);
/* Moves it to where less is unused around it. Returns where it is now. */
char *mu_thin_table_move(const struct mu_size_class *k, char *table, unsigned entries);
/* Fills the whole table of a run that has a thin one. */
void mu_thin_table_expand(const struct mu_run *run, const struct mu_size_class *k, char *whole);
/* The place of a unit of a run that has a thin one; {0, 0} for one that is not meshed. */
struct mu_packed_place mu_thin_place(const struct mu_run *run, const struct mu_size_class *k, unsigned unit_pages,
                                     unsigned unit);

#endif
