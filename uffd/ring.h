/* SPDX-License-Identifier: Apache-2.0 */
/* io_uring, with what stands in for it where it is not allowed. Mesher thread only. */
#ifndef MU_RING_H
#define MU_RING_H

#include "src/common.h"

/* Makes pages of a file's range; waits for the result. Returns 0 or -errno. */
int mu_ring_fallocate(int fd, uint64_t offset, size_t len);

#endif
