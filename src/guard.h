/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Guards (MESH_UFFD_CHECK=2): what an object's slot has beyond its end, at least MU_GUARD_BYTES, is filled with a
 * pattern and ends with the object's size, so that a store there is found when the object is freed or resized.
 *
 *     | size bytes of the object | pattern | size, scrambled: 8 bytes |
 *     p                          p + size                             p + room
 */
#ifndef MU_GUARD_H
#define MU_GUARD_H

#include "src/common.h"

enum { MU_GUARD_BYTES = 16 };

/* size + MU_GUARD_BYTES <= room, which is a multiple of 8. */
void mu_guard_set(void *p, size_t size, size_t room);
/* The object's size; at most room - MU_GUARD_BYTES whatever is there. */
size_t mu_guard_size(const void *p, size_t room);
/* The first byte that is not as it was, NULL when all are. */
const void *mu_guard_broken(const void *p, size_t room);

#endif
