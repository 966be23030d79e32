/* SPDX-License-Identifier: Apache-2.0 */
/* The figures, gathered and printed. */
#ifndef MU_STATS_H
#define MU_STATS_H

#include "src/common.h"
#include <mesh-uffd.h>

void mu_stats_gather(struct mesh_uffd_stats *s);
/* To standard error; level 2 adds a table by size class. */
void mu_stats_print(unsigned level);
const char *mu_tier_name(uint32_t tier);

/* Pages that are mapped onto a packed unit beside the first one of each: what meshing saves, but for private copies. */
uint64_t mu_meshed_pages_now(void);

#endif
