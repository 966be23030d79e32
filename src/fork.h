/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks. libc's fork runs our handlers: everything is locked and consistent. _Fork, clone and syscall are interposed.
 * Any of them may be called in a signal handler that has interrupted a holder of a lock of ours, who goes on in both
 * processes: such locks are left to him. The others are taken, each after a bounded wait. In the child, what stood
 * under a lock that could not be had is not used any more, and no mesher starts.
 */
#ifndef MU_FORK_H
#define MU_FORK_H

#include "src/common.h"

/* Registers the handlers. Once. */
void mu_fork_init(void);

struct mu_fork {
  uint64_t taken;  /* locks that were taken for it, by number */
  bool inside;     /* the thread is in the heap for it */
  bool others;     /* other threads of the program's were there */
  bool interrupts; /* it was called in a signal handler that has interrupted a holder of a lock */
};
void mu_raw_fork_prepare(struct mu_fork *fork);
void mu_raw_fork_parent(struct mu_fork *fork);
/* by_libc: libc has made its own locks new. */
void mu_raw_fork_child(struct mu_fork *fork, bool by_libc);

/* Every lock, each if it can be had within a second, as for a fork. False: not all of them. */
bool mu_locks_seize(struct mu_fork *fork);
void mu_locks_let_go(const struct mu_fork *fork);

/* On the slow way: notices that this process is a child that none of the above has seen, and makes it whole. */
void mu_check_forked(void);

#endif
