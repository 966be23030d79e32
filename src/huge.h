/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Transparent huge pages. The arena does without, since a few live objects would keep 2 MiB resident. Two kinds of
 * memory may have them all the same, where the system gives them to every program
 * (/sys/kernel/mm/transparent_hugepage/enabled says "always") or the option asks for them: large allocations, as with
 * any malloc, and what a heap of 32 MiB and more grows by, which is about to be filled. A region of 2 MiB that may have
 * one is marked: before a part of it goes, the huge page is divided, or the kernel would keep the memory.
 */
#ifndef MU_HUGE_H
#define MU_HUGE_H

#include "src/common.h"

enum { MU_HUGE_BYTES = 2 << 20 }; /* with pages of 4 KiB; where they are larger there is nothing of this */

/* Whether a fresh range of this length is mapped in that way. No file is read for it, which a sandbox might punish:
 * what the kernel makes of it is its own decision. */
bool mu_huge_wanted(size_t bytes);

/* The mesher's: finds out whether the kernel gives huge pages, so that there may be something to divide. */
void mu_huge_look(void);
bool mu_huge_given(void);

/* Maps fresh memory that may have huge pages over an inaccessible or unused range. False: it is as it was. */
bool mu_huge_map(void *start, size_t len);

/* Huge pages may have come into the range by mremap. */
void mu_huge_moved(const void *start, size_t len);

/* No new huge page comes into the range. Those that are there stay. */
void mu_huge_end(void *start, size_t len);

/* Whether the range may hold a huge page, and so pages that nobody has touched. */
bool mu_huge_in(const void *start, size_t len);

/* Divides the huge pages of which this range, which is about to be dropped or closed, is a part. One that a forked
 * child shows, or that is pinned, stays whole: the kernel divides it when memory is short. */
void mu_huge_divide(void *start, size_t len);

#endif
