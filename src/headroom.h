/* SPDX-License-Identifier: Apache-2.0 */
/* How much memory the process's control groups may still take before one reaches its limit. Mesher thread only. */
#ifndef MU_HEADROOM_H
#define MU_HEADROOM_H

#include "src/common.h"

struct mu_headroom {
  uint64_t limit, room; /* bytes: of the group that has the least room */
};

/* False: no group has a limit, or none that can be seen. Finds its files at the first call. */
bool mu_headroom_measure(struct mu_headroom *h);
/* In a forked child, and when the mesher leaves: its descriptors have gone. */
void mu_headroom_forget(void);

#endif
