/* SPDX-License-Identifier: Apache-2.0 */
/* What happens around main: options, fork handlers, statistics at exit. malloc works before any of it. */
#include "src/entry.h"
#include "src/fork.h"
#include "src/mesher.h"
#include "src/options.h"
#include "src/stats.h"
#include "src/thread_local_heap.h"
#include <sys/auxv.h>
#include <unistd.h>

/* What a static program's malloc refers to, so that this file is linked with it. */
const char mu_init_linked = 1;

/* The first constructor of the process (-z initfirst): so our fork handlers are the innermost, and those of other
 * libraries may allocate. libc has not set environ yet, but passes it. */
__attribute__((constructor(101))) static void before_main(int argc, char **argv, char **envp) {
#ifdef __GLIBC__
  char *const *env = envp;
#else
  char *const *env = environ;
#endif
  (void)argc;
  (void)argv;
  (void)envp;
  if (env && !getauxval(AT_SECURE)) mu_options_read(env);
  mu_threads_init();
  if (!mu_heap_ready()) return;
  mu_fork_init();
  mu_mesher_init();
}

__attribute__((destructor(101))) static void after_main(void) {
  if (mu_options.stats) mu_stats_print(mu_options.stats);
}
