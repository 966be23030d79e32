/* SPDX-License-Identifier: Apache-2.0 */
#include "src/thread.h"
#include "src/log.h"
#include "src/sys.h"
#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

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

static MU_INITIAL_EXEC __thread bool is_ours;

bool mu_thread_is_ours(void) {
  return is_ours;
}

enum { SHORT_SLICE_NS = 100000 }; /* the least that the kernel takes */

/* The kernel's, which libc's headers may not have, or under a name that theirs clashes with. */
struct attributes {
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period; /* runtime: of an ordinary thread its time slice in ns, from Linux 6.12 on */
};

void mu_thread_short_slice(void) {
  struct attributes a = {.size = sizeof a};
  if (mu_sys_call(MU_SYS_sched_getattr, 0, (long)&a, sizeof a, 0, 0, 0) < 0) return;
  a.runtime = SHORT_SLICE_NS;
  mu_sys_call(MU_SYS_sched_setattr, 0, (long)&a, 0, 0, 0, 0);
}

void mu_thread_settle(const char *name) {
  struct sched_param zero = {.sched_priority = 0};
  unsigned char every[128];
  memset(every, 0xff, sizeof every);
  is_ours = true;
  mu_log_from_outside();
  mu_sys_call(MU_SYS_prctl, PR_SET_NAME, (long)name, 0, 0, 0, 0);
  mu_sys_call(MU_SYS_sched_setscheduler, 0, SCHED_OTHER, (long)&zero, 0, 0, 0);
  mu_sys_call(MU_SYS_sched_setaffinity, 0, sizeof every, (long)every, 0, 0, 0);
}

static rlim_t limit_of(int resource) {
  struct rlimit limit;
  if (mu_sys_call(MU_SYS_prlimit64, 0, resource, 0, (long)&limit, 0, 0) < 0) return 0;
  return limit.rlim_cur;
}

/* For this thread alone: the ring's workers, which the kernel makes in its image, are in no hurry. */
static bool set_policy(int policy, int priority) {
  enum { RESET_ON_FORK = 0x40000000 };
  struct sched_param p = {.sched_priority = priority};
  return mu_sys_call(MU_SYS_sched_setscheduler, 0, policy | RESET_ON_FORK, (long)&p, 0, 0, 0) == 0;
}

/* What the privileged may have, or what RLIMIT_RTPRIO grants. */
static bool rise(void) {
  enum { HIGHEST = 99 };
  if (limit_of(RLIMIT_RTTIME) != RLIM_INFINITY) return false;
  if (set_policy(SCHED_FIFO, HIGHEST)) return true;
  rlim_t granted = limit_of(RLIMIT_RTPRIO);
  return granted > 0 && set_policy(SCHED_FIFO, (int)mu_min(granted, HIGHEST));
}

void mu_thread_urgent(bool on) {
  static _Atomic uint32_t refused; /* once: it is not asked for again */
  static __thread MU_INITIAL_EXEC bool urgent;
  if (on && !urgent && !atomic_load_explicit(&refused, memory_order_relaxed)) {
    urgent = rise();
    if (!urgent) atomic_store_explicit(&refused, 1, memory_order_relaxed);
  } else if (!on && urgent) {
    urgent = !set_policy(SCHED_OTHER, 0);
  }
}

void mu_wait_a_little(_Atomic uint32_t *word, uint32_t while_it_is, unsigned step) {
  enum { YIELDS = 16, NS = 20000 };
  if (step < YIELDS)
    mu_sys_call(MU_SYS_sched_yield, 0, 0, 0, 0, 0, 0);
  else
    mu_futex_wait(word, while_it_is, NS);
}
