/* SPDX-License-Identifier: Apache-2.0 */
/* Allocations of more than MU_MAX_SMALL bytes, or aligned to more than a page: an extent each. */
#ifndef MU_LARGE_H
#define MU_LARGE_H

#include "src/arena.h"

/* align: a power of two. *zeroed: reads as zeros. NULL when memory is out. */
void *mu_large_alloc(size_t size, size_t align, bool *zeroed);
/* False when p is not the start of a large allocation. */
bool mu_large_free(void *p);
/* Bytes usable at p, 0 when p is not the start of a large allocation. */
size_t mu_large_usable(const void *p);
/* Makes the allocation at p hold `size` bytes without copying. Returns its address, which may be new, or NULL when that
 * cannot be done (the allocation is as it was). */
void *mu_large_resize(void *p, size_t size);

#endif
