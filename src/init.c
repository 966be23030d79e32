/* SPDX-License-Identifier: Apache-2.0 */
/* What happens before the first allocation and around main: options, whether to stand aside, fork handlers, statistics
 * at exit. */
#include "src/aside.h"
#include "src/entry.h"
#include "src/fork.h"
#include "src/log.h"
#include "src/mesher.h"
#include "src/options.h"
#include "src/profile.h"
#include "src/stats.h"
#include "src/thread_local_heap.h"
#include "uffd/engine.h"
#include <stdlib.h>
#include <sys/auxv.h>
#include <unistd.h>

/* What a static program's malloc refers to, so that this file is linked with it. */
const char mu_init_linked = 1;

/*
 * The environment as it was at the start: libc has not set environ yet when the first allocation comes, but the dynamic
 * linker remembers where the kernel put the arguments, behind which it lies.
 */
extern void *__libc_stack_end __attribute__((weak));

MU_AT_START static char *const *initial_environment(void) {
  enum { MOST_ARGUMENTS = 1 << 24 };
  if (environ || !&__libc_stack_end || !__libc_stack_end) return environ;
  long argc = *(long *)__libc_stack_end;
  char **argv = (char **)__libc_stack_end + 1;
  return argc >= 0 && argc < MOST_ARGUMENTS && !argv[argc] ? argv + argc + 1 : NULL;
}

MU_EARLY static bool options_are_read, aside_is_decided;

MU_AT_START void mu_before_heap(void) {
  bool secure = getauxval(AT_SECURE) != 0;
  char *const *env = secure ? NULL : initial_environment();
  if (env && !options_are_read) {
    options_are_read = true;
    mu_options_read(env);
  }
  if (!aside_is_decided) mu_aside_decide(env);
  aside_is_decided = true;
}

/* Valgrind's malloc is called in place of ours, which can only be seen by trying. */
static bool is_replaced(void) {
#ifdef MU_PREFIXED_ONLY
  return false;
#else
  if (!mu_under_valgrind()) return false;
  void *p = malloc(1);
  bool replaced = !mu_is_ours(p);
  free(p);
  return replaced;
#endif
}

/* Valgrind does not know what the library's threads ask of the kernel. */
static bool is_simulated(void) {
  if (!mu_under_valgrind()) return false;
  mu_log("nothing is meshed or given back under valgrind");
  return true;
}

/* The first constructor of the process (-z initfirst): so our fork handlers are the innermost, and those of other
 * libraries may allocate. What only a heap needs is made with it: many a process has none, and every one starts. */
__attribute__((constructor(101))) static void before_main(void) {
  mu_before_heap();
  if (!mu_aside && is_replaced()) mu_aside = MU_ASIDE_CHECKER;
  if (mu_aside > MU_ASIDE_DENIED || (mu_aside && mu_options.stats)) mu_aside_say();
  if (mu_aside == MU_ASIDE_SANITIZER) mu_begin_sanitizer();
  if (mu_aside) return;
  if (mu_options.profile && mu_heap_ready()) mu_profile_init();
  mu_fork_init();
  if (mu_is_second_namespace() || is_simulated())
    mu_mesher_stay_away();
  else
    mu_open_libraries();
  if (mu_options.drop_caps) mu_caps_open();
  mu_mesher_init();
}

/* In place of the compiler's, which does nothing either, but does it at the far end of the text. */
extern void mu_at_exit_nothing(void);
MU_AT_START void mu_at_exit_nothing(void) {}

__attribute__((destructor(101))) static void after_main(void) {
  if (mu_options.profile) mu_profile_write_at_exit();
  if (mu_options.stats && !mu_aside && mu_heap_ready()) mu_stats_print(mu_options.stats);
}
