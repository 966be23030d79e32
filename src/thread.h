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
/* Whether the calling thread is one of them. */
bool mu_thread_is_ours(void);

/*
 * While somebody may have to wait for the calling thread, nothing else shall keep it from a processor: from on to off
 * it has the highest real-time priority that the kernel lets it have, if any. It must not spin meanwhile
 * (mu_wait_a_little). Left alone where the program's real-time processor time is limited (RLIMIT_RTTIME): the limit
 * would count ours.
 */
void mu_thread_urgent(bool on);

/* A step of a wait for another thread that is at work: yields at first, then sleeps for microseconds. */
void mu_wait_a_little(_Atomic uint32_t *word, uint32_t while_it_is, unsigned step);

/* For one that has little to do whenever it wakes: a short time slice lets it in sooner (from Linux 6.12 on). */
void mu_thread_short_slice(void);

#endif
