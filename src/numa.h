/* SPDX-License-Identifier: Apache-2.0 */
/* On which node of the machine memory is: what is on different ones is not packed together. Mesher thread only. */
#ifndef MU_NUMA_H
#define MU_NUMA_H

#include "src/common.h"

/* MU_NODE_UNKNOWN: the kernel does not tell, or a sandbox does not let it; MU_NODE_MIXED: on several. */
enum { MU_NODE_UNKNOWN = 254, MU_NODE_MIXED = 255 };

/* How many nodes there are, by their highest number; 1 where nothing need be asked. */
unsigned mu_numa_nodes(void);
/* The node of those pages of a run that are set in the mask (bit i: page i). */
unsigned mu_numa_node_of(uint32_t run, uint64_t pages);
/* Has the pages of a file that are made from now on come from that node, as long as it has any. */
void mu_numa_prefer(void *window, size_t bytes, unsigned node);

#endif
