/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stack of the calling thread, from the call frame information that every program of x86-64 and aarch64 has
 * (.eh_frame). Allocates nothing, takes no lock where libc can tell a module without one, and reads no stack memory
 * that cannot be read: a stack that is not one ends the walk, not the program.
 */
#ifndef MU_UNWIND_H
#define MU_UNWIND_H

#include "src/common.h"

/* Fills pcs with the addresses of calls (of their last byte, so that they lie within the call), innermost first,
 * without those of the library itself. Returns how many. */
unsigned mu_unwind(uintptr_t *pcs, unsigned room);

#endif
