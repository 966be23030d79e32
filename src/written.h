/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which runs the program writes to. The first store to a meshed page copies it, so that meshing what is written all the
 * time costs a pass, and then more memory than it saved. So a run is looked at twice, a good second apart: some of its
 * pages that hold something must be the same. Mesher thread only.
 */
#ifndef MU_WRITTEN_H
#define MU_WRITTEN_H

#include "src/pacing.h"

enum mu_written {
  MU_WRITTEN_NOT,  /* or nobody can tell */
  MU_WRITTEN_WAIT, /* it was looked at once */
  MU_WRITTEN,
};

enum mu_written mu_written_look(uint32_t run, uint32_t tick);
/* In a forked child. */
void mu_written_forget(void);

#endif
