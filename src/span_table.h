/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory for the tables of MiniHeaps: blocks of one size for each class, cut from slabs that go back when empty; but
 * for the first of each class, which stays. A class's own are protected by its lock; the slabs by one of their own.
 */
#ifndef MU_SPAN_TABLE_H
#define MU_SPAN_TABLE_H

#include "src/lock.h"

/* Zeroed memory for the MiniHeaps of a run of the class, or NULL when out. */
void *mu_span_table_alloc(unsigned size_class);
void mu_span_table_free(unsigned size_class, void *table);
/* Moves a table to where less is unused around it, if there is such a place. Returns where it is now. */
void *mu_span_table_move(unsigned size_class, void *table);
extern struct mu_lock mu_span_table_lock; /* of the slabs, and of what follows */

/* Memory of another size, for a thin table, not zeroed; blocks of like size share slabs, whatever their class. */
void *mu_thin_block_alloc(size_t bytes);
void mu_thin_block_free(void *block, size_t bytes);
void *mu_thin_block_move(void *block, size_t bytes);
/* What so many bytes take, rounded up as it is. */
size_t mu_thin_block_bytes(size_t bytes);

/* In a forked child, where another thread was at work under the lock of the slabs, or of the class: what it may have
 * half changed is not used any more. */
void mu_span_tables_lost(void);
void mu_span_table_class_lost(unsigned size_class);

#endif
