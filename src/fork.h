/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks. libc's fork runs our handlers: everything is locked and consistent. _Fork, clone and syscall are interposed
 * and wait for the pass in progress only, since they may be called where a lock of ours is held (in a signal handler).
 */
#ifndef MU_FORK_H
#define MU_FORK_H

#include "src/common.h"

/* Registers the handlers. Once. */
void mu_fork_init(void);

struct mu_raw_fork {
  bool passes_stopped; /* else only the barrier is known to be open */
};
void mu_raw_fork_prepare(struct mu_raw_fork *state);
void mu_raw_fork_parent(struct mu_raw_fork *state);
void mu_raw_fork_child(struct mu_raw_fork *state);

/* On the slow way: notices that this process is a child that none of the above has seen, and makes it whole. */
void mu_check_forked(void);

#endif
