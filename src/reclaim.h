/* SPDX-License-Identifier: Apache-2.0 */
/* Gives unused pages back: free extents, spans without a live slot, and of others the pages that hold nothing of any
 * live slot. Mesher thread only. */
#ifndef MU_RECLAIM_H
#define MU_RECLAIM_H

#include "src/common.h"

/* Whether there are unused pages that will go back by and by. */
bool mu_reclaim_waits(void);
/* Gives back what has been unused for longer than it may be; returns pages. */
size_t mu_reclaim_old(void);
/* Gives back all of it; returns pages. */
size_t mu_reclaim_all(void);
/* Slots that threads have no use for go back to their spans; all of them, or those that were not needed since the last
 * call. Returns how many are kept. */
uint32_t mu_reclaim_cached(bool everything);
/* In a forked child. */
void mu_reclaim_renew(void);

#endif
