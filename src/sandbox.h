/* SPDX-License-Identifier: Apache-2.0 */
/* Seccomp filters that were there before the program. */
#ifndef MU_SANDBOX_H
#define MU_SANDBOX_H

#include "src/common.h"

/*
 * Whether a filter that this process has inherited would end it at a system call that the library makes, rather than
 * refuse the call. There is no way to ask; so a child tries each, if there is a filter at all. Takes a millisecond
 * then.
 */
bool mu_sandbox_kills(void);

#endif
