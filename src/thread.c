/* SPDX-License-Identifier: Apache-2.0 */
#include "src/thread.h"
#include "src/sys.h"
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

enum { STACK_BYTES = 128 * 1024 }; /* deepest use is a few KiB; the rest is room for the C library's static TLS */

int mu_thread_create(pthread_t *thread, void *(*run)(void *)) {
  sigset_t all, before;
  pthread_attr_t attr;
  int saved = errno, refused = mu_sys_refused(MU_SYS_clone3);
  if (refused) return refused;
  sigfillset(&all);
  int r = pthread_attr_init(&attr);
  if (r == 0) {
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_attr_setinheritsched(&attr, PTHREAD_INHERIT_SCHED); /* settled by the thread itself */
    pthread_sigmask(SIG_SETMASK, &all, &before);                /* libc leaves its own signals out */
    r = pthread_create(thread, &attr, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
  }
  errno = saved;
  return r;
}

void mu_thread_settle(const char *name) {
  struct sched_param zero = {.sched_priority = 0};
  unsigned char every[128];
  memset(every, 0xff, sizeof every);
  mu_sys_call(MU_SYS_prctl, PR_SET_NAME, (long)name, 0, 0, 0, 0);
  mu_sys_call(MU_SYS_sched_setscheduler, 0, SCHED_OTHER, (long)&zero, 0, 0, 0);
  mu_sys_call(MU_SYS_sched_setaffinity, 0, sizeof every, (long)every, 0, 0, 0);
}
