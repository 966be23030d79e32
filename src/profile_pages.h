/* SPDX-License-Identifier: Apache-2.0 */
/* For the heap profile: how much memory an object keeps from going back. */
#ifndef MU_PROFILE_PAGES_H
#define MU_PROFILE_PAGES_H

#include "src/common.h"

/*
 * A page goes back when the last live object on it is freed. So each of n of them holds an n-th of the page; what units
 * show together is one page, held by the objects of all of them; a page that was stored to since is one of its own.
 */
struct mu_pages {
  uint64_t *shared; /* hash table: place of a packed page << 20 | live objects on it; 0: empty */
  size_t slots;
  int pagemap;
};

/* Between the two no run is meshed: begin takes the pass lock, end releases it. False: no memory. */
bool mu_pages_begin(struct mu_pages *pages);
void mu_pages_end(struct mu_pages *pages);

/* Bytes held by the object at p, of `size` bytes; 0 when it is not live any more. */
double mu_pages_held(const struct mu_pages *pages, const void *p, size_t size);

#endif
