/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory pressure: tasks of the process's control group, or of the whole machine, wait for memory (the kernel's
 * pressure stall information). Mesher thread only, but for what the watch calls.
 */
#ifndef MU_PRESSURE_H
#define MU_PRESSURE_H

#include "src/common.h"

/* Whether there was pressure since the last call. Costs a read or two; finds its files at the first call. */
bool mu_pressure_felt(uint64_t now);
/*
 * Has `rung` called, by another thread, when there is pressure. Once; it lasts until the process ends, which takes some
 * milliseconds longer then: the kernel lets readers of its list of triggers finish. So not for who ends soon.
 */
void mu_pressure_watch(void (*rung)(void));
/* In a forked child, and when the mesher leaves: its descriptors have gone. */
void mu_pressure_forget(void);

#endif
