/* SPDX-License-Identifier: Apache-2.0 */
/* The library's own threads: small, silent, out of the program's way. */
#ifndef MU_THREAD_H
#define MU_THREAD_H

#include "src/common.h"
#include <pthread.h>

/* Starts one with every signal blocked but those libc keeps for itself. Returns 0 or an errno value. */
int mu_thread_create(pthread_t *thread, void *(*run)(void *));

/* First thing in such a thread: its name, and the ordinary scheduling policy on every processor, whatever was
 * inherited. */
void mu_thread_settle(const char *name);

#endif
