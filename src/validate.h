/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every invariant of the whole heap: what each class, its runs and its spans count, free memory, what meshed units
 * show, and that the kernel's mappings and pages agree. Each aborts with a message on the first that does not hold.
 */
#ifndef MU_VALIDATE_H
#define MU_VALIDATE_H

#include "src/common.h"

/* By the mesher, outside of passes. quiet: nobody allocates, frees or purges meanwhile, so that all memory must be
 * accounted for. Takes all class locks. */
void mu_heap_validate(bool quiet);

/* By anybody, for debuggers: takes every lock, if it can be had within a second. Says what came of it. */
const char *mu_heap_validate_now(void) __attribute__((used));

/* The part about meshed units; with_kernel: its mappings and pages as well. All class locks are held. */
void mu_shown_validate(bool with_kernel);

#endif
