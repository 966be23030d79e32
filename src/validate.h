/* SPDX-License-Identifier: Apache-2.0 */
/* The whole heap, checked. */
#ifndef MU_VALIDATE_H
#define MU_VALIDATE_H

#include "src/common.h"

/* Every invariant of classes, runs, spans and extents; aborts with a message. quiet: nobody allocates, frees or purges
 * meanwhile: then every page must be accounted for. No lock is held. */
void mu_heap_validate(bool quiet);

#endif
