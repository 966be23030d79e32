/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decay: how many unused pages may stay. What became unused some time ago counts for less and less, by a curve that is
 * flat at both ends, and for nothing after the decay time: so memory goes back smoothly, and what is needed again soon
 * is mostly still there. Pure: the caller brings the clock. Mesher thread only.
 */
#ifndef MU_DECAY_H
#define MU_DECAY_H

#include "src/common.h"

enum { MU_DECAY_STEPS = 64 };

struct mu_decay {
  uint64_t time_ns;             /* 0: nothing may stay */
  uint64_t step;                /* number of the newest step */
  size_t fresh[MU_DECAY_STEPS]; /* pages by which the unused ones grew in each step, by number of step */
  size_t left;                  /* unused pages that there were after the last look */
};

void mu_decay_begin(struct mu_decay *d, uint64_t time_ns, uint64_t now);
/* So many pages are unused now. Returns how many of them may stay. */
size_t mu_decay_allows(struct mu_decay *d, uint64_t now, size_t unused);
/* So many were left in the end. */
void mu_decay_note_left(struct mu_decay *d, size_t pages);

#endif
