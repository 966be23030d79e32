/* SPDX-License-Identifier: Apache-2.0 */
/* io_uring, with what stands in for it where it is not allowed. Mesher thread only. */
#ifndef MU_RING_H
#define MU_RING_H

#include "src/common.h"

/* Begins to make pages of a file's range; false when there is no ring. */
bool mu_ring_fallocate_begin(int fd, uint64_t offset, size_t len);
/* Waits for all that was begun. Returns 0, or -errno of one that failed: which is not known. */
int mu_ring_wait(void);
/* The same, at once, without the ring. Returns 0 or -errno. */
int mu_fallocate(int fd, uint64_t offset, size_t len);

#endif
