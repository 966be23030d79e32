/* SPDX-License-Identifier: Apache-2.0 */
/* Planning and carrying out passes over the runs of one size class. Mesher thread only. */
#ifndef MU_PASS_H
#define MU_PASS_H

#include "src/common.h"

struct mu_pass_policy {
  uint32_t quiet_ticks; /* runs claimed from within so many ticks are left alone */
  uint32_t min_pages;   /* a plan that saves less is not carried out */
  uint64_t deadline_ns; /* of this thread's processor time: stop when it has passed; 0: never */
  bool ignore_backoff;
  bool (*may_go_on)(void); /* asked before each run; false ends the plan */
};

/* Meshes what pays among the runs of a class. Returns physical pages given back. */
size_t mu_pass_class(unsigned size_class, const struct mu_pass_policy *policy);

/* Held while the mesher changes anything; fork takes it. */
extern struct mu_lock mu_passes;
void mu_pass_lock(void);
void mu_pass_unlock(void);
/* For who may come at any place: gives up at `end` (mu_now_ns). Given back by mu_lock_let_go; see there. */
bool mu_pass_seize(uint64_t end);
/* In a forked child. */
void mu_pass_forget_waiters(void);
/* No run is closed from the return of pause to the resume that matches it. */
void mu_pass_pause(void);
void mu_pass_resume(void);
bool mu_pass_paused(void);
/* Held by a pass only while a barrier is closed, and no other lock is waited for meanwhile. */
extern struct mu_lock mu_gate;

/* Asks anew how many mappings meshing may use; chooses units so that what is to be meshed fits. Before each round. */
void mu_mapping_budget_refresh(void);
uint64_t mu_mapping_budget(void);
void mu_pass_choose_units(void);

#endif
