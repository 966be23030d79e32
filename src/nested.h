/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that come while their thread is in the heap already: those of signal handlers that have interrupted malloc or
 * free. They get memory of a range of its own, without any lock; what they free of the heap is freed later.
 */
#ifndef MU_NESTED_H
#define MU_NESTED_H

#include "src/common.h"

/* Whole pages; NULL for more than can be had. */
void *mu_nested_malloc(size_t size, size_t align);
/* False: p is not in that range. */
bool mu_nested_free(void *p);
/* 0: p is not such an allocation. */
size_t mu_nested_usable(const void *p);

/* Keeps an object of the heap until somebody calls mu_nested_settle, who is not in the heap. */
void mu_nested_defer(void *p);
extern _Atomic(void *) mu_nested_deferred;
void mu_nested_settle(void);

#endif
