/* SPDX-License-Identifier: Apache-2.0 */
/* The malloc family under names of our own, as the exported names, the C++ operators and the public interface use it.
 */
#ifndef MU_ENTRY_H
#define MU_ENTRY_H

#include "src/common.h"

void *mu_malloc(size_t size);
void mu_free(void *p);
void *mu_calloc(size_t count, size_t size);
void *mu_realloc(void *p, size_t size);
void *mu_memalign(size_t align, size_t size);
/* Bytes usable at p, 0 when p is not the start of an allocation. */
size_t mu_usable_size(const void *p);
bool mu_is_ours(const void *p);

/* Defined in init.c. */
extern const char mu_init_linked;

#endif
