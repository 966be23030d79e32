/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mesher: a background thread that gives unused memory back and drives passes. Started when the heap is first worth
 * it; sleeps when the program does and there is nothing left to do.
 */
#ifndef MU_MESHER_H
#define MU_MESHER_H

#include "src/common.h"

/* Once, before main: from here on the mesher may start. */
void mu_mesher_init(void);

bool mu_mesher_is_running(void);
/* It looks up from its sleep, at what it is asked for besides. From a signal handler, too. */
void mu_mesher_look_up(void);

/* Compacts as far as it goes, now; returns bytes given back. Blocks until done. */
size_t mu_mesher_compact(void);
/* Gives unused pages back, now; returns bytes. */
size_t mu_mesher_purge(void);

/* One line for people: why it is this tier, or why there is none. */
const char *mu_mesher_why(void);
/*
 * Around a call that changes what its thread alone may do, or that a process of one thread alone may make: the mesher
 * and the engine end before it, and none starts until mu_mesher_may_start. Otherwise libc, which gives a change of user
 * to every thread, would find that it fails in ours and ends the process.
 */
void mu_mesher_leave(void);
void mu_mesher_may_start(void);
/* For good, in this process and its children: a filter may end the process at a call that it does not expect. */
void mu_mesher_stay_away(void);

/* In a forked child: there is no mesher, no engine, no mesh file that can be added to. */
void mu_mesher_forget(void);

struct mu_mesher_counters {
  _Atomic uint64_t meshes, meshed_pages, meshed_pages_hwm, freed_bytes, reclaimed_bytes, passes, pass_ns,
      longest_pass_ns;
  _Atomic uint64_t refused_busy, refused_exempt, refused_overlap, refused_shared, refused_mappings;
};
extern struct mu_mesher_counters mu_mesher_counters;

#endif
