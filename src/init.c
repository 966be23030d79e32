/* SPDX-License-Identifier: Apache-2.0 */
/* What happens around main: options, fork handlers, statistics at exit. malloc works before any of it. */
#include "src/entry.h"
#include "src/global_heap.h"
#include "src/mesher.h"
#include "src/options.h"
#include "src/stats.h"
#include "src/thread_local_heap.h"
#include <pthread.h>
#include <sys/auxv.h>
#include <unistd.h>

/* What a static program's malloc refers to, so that this file is linked with it. */
const char mu_init_linked = 1;

static void fork_prepare(void) {
  mu_mesher_fork_prepare();
  mu_registry_lock();
  mu_global_lock_all();
  mu_lock_take(&mu_extent_lock);
}

static void fork_parent(void) {
  mu_lock_release(&mu_extent_lock);
  mu_global_unlock_all();
  mu_registry_unlock();
  mu_mesher_fork_parent();
}

static void fork_child(void) {
  mu_lock_release(&mu_extent_lock);
  mu_global_unlock_all();
  mu_registry_unlock();
  mu_lock_renew(&mu_extent_lock); /* whoever waited for them does not exist here */
  mu_global_renew_locks();
  mu_registry_renew();
  mu_mesher_fork_child();
  mu_registry_adopt();
}

__attribute__((constructor(101))) static void before_main(void) {
  if (environ && !getauxval(AT_SECURE)) mu_options_read(environ);
  mu_threads_init();
  pthread_atfork(fork_prepare, fork_parent, fork_child);
  mu_mesher_init();
}

__attribute__((destructor(101))) static void after_main(void) {
  if (mu_options.stats) mu_stats_print(mu_options.stats);
}
