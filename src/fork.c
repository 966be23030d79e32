/* SPDX-License-Identifier: Apache-2.0 */
#include "src/fork.h"
#include "src/global_heap.h"
#include "src/log.h"
#include "src/mesher.h"
#include "src/pass.h"
#include "src/profile.h"
#include "src/span_table.h"
#include "src/sys.h"
#include "src/thread_local_heap.h"
#include <pthread.h>
#include <sys/mman.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* Reads 1 in the process that wrote it and 0 in a child that has not: its page is wiped on fork. NULL: not to be had.
 */
static uint32_t *same_process;

static void count_fork(void) {
  atomic_fetch_add_explicit(&mu_forks, 1, memory_order_relaxed);
}

static void mark_process(void) {
  if (same_process) *same_process = 1;
}

/*
 * libc's own lock of the list of streams, recursive, which its fork takes after our handlers. Who holds it may wait for
 * a stream whose owner allocates (getline): so it comes before all locks of ours. Weak: only glibc has them.
 */
void _IO_list_lock(void) __attribute__((weak));
void _IO_list_unlock(void) __attribute__((weak));
void _IO_list_resetlock(void) __attribute__((weak));

static void prepare(void) {
  if (_IO_list_lock) _IO_list_lock();
  mu_pass_lock();
  mu_registry_lock();
  mu_global_lock_all();
  mu_lock_take(&mu_extent_lock);
  mu_profile_lock();
}

static void release(void) {
  mu_profile_unlock();
  mu_lock_release(&mu_extent_lock);
  mu_global_unlock_all();
  mu_registry_unlock();
  mu_pass_unlock();
}

static void parent(void) {
  count_fork();
  release();
  if (_IO_list_unlock) _IO_list_unlock();
}

/* Whoever held or waited for a lock does not exist here. */
static void renew_locks(void) {
  mu_lock_renew(&mu_extent_lock);
  mu_global_renew_locks();
  mu_registry_renew();
  mu_pass_renew();
  mu_meta_renew();
  mu_span_table_renew();
  mu_profile_renew();
}

static void child(void) {
  release();                                    /* for the record of held locks */
  if (_IO_list_resetlock) _IO_list_resetlock(); /* libc has done so only if there were several threads */
  count_fork();
  renew_locks();
  mu_mesher_forget();
  mu_registry_forget_others();
  mark_process();
}

void mu_fork_init(void) {
  int err;
  pthread_atfork(prepare, parent, child);
  same_process = mu_mmap(NULL, mu_arena.page_size ? mu_arena.page_size : 4096, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &err);
  if (same_process && mu_madvise(same_process, mu_arena.page_size, MADV_WIPEONFORK) < 0) same_process = NULL;
  mark_process();
}

enum { PATIENCE_MS = 50 }; /* a pass over a run takes a millisecond */

void mu_raw_fork_prepare(struct mu_raw_fork *state) {
  state->passes_stopped = mu_pass_try_lock(PATIENCE_MS);
  mu_gate_close();
}

void mu_raw_fork_parent(struct mu_raw_fork *state) {
  count_fork();
  mu_gate_open();
  if (state->passes_stopped) mu_pass_unlock();
}

/* Vectors of other threads are left alone: who forks so may have interrupted anything. */
void mu_raw_fork_child(struct mu_raw_fork *state) {
  mu_raw_fork_parent(state);
  renew_locks();
  mu_mesher_forget();
  mark_process();
}

void mu_check_forked(void) {
  if (MU_LIKELY(!same_process || *same_process)) return;
  count_fork();
  renew_locks();
  mu_mesher_forget();
  mark_process();
  mu_log("this process was forked by a system call that did not go through libc: had a pass been under way, objects of "
         "one run would read as zeros here");
}
