/* SPDX-License-Identifier: Apache-2.0 */
/* Writes the statistics page, include/mesh-uffd-stats-page.h. No locks: each figure is of its own moment. */
#ifndef MU_STATS_PAGE_H
#define MU_STATS_PAGE_H

#include "src/common.h"

/* Mesher thread: brings the page up to date; _if_due: unless that was done a moment ago. */
void mu_stats_page_write(void);
void mu_stats_page_write_if_due(void);

/* There is no mesher any more: the page says so. In a forked child: if the parent had one, it is the child's from here
 * on. */
void mu_stats_page_left_alone(void);

#endif
