/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls of libc that the heap must know of: forks that run no handlers, the futex operations that do not wait for a
 * closed page but fail with EFAULT, and changes of what a single thread may do. What goes round libc, by system call
 * instructions of the program's own, is not seen here; a child made so is noticed at its first call that takes the slow
 * way (mu_check_forked).
 */
#include "src/fork.h"
#include "src/global_heap.h"
#include "src/log.h"
#include "src/marks.h"
#include "src/mesher.h"
#include "src/sys.h"
#include "src/thread_local_heap.h"
#include <dlfcn.h>
#include <errno.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_clone3
#define SYS_clone3 435
#endif

static long checked(long r) {
  if (r >= 0 || r < -4095) return r;
  errno = (int)-r;
  return -1;
}

/* ---- forks ---------------------------------------------------------------------------------------------------------
 */

/* Whether a system call makes a process with a memory of its own that goes on where this one does. */
static bool is_fork(long n, long a, long b) {
#ifdef SYS_fork
  if (n == SYS_fork) return true;
#endif
  if (n == SYS_clone) return !(a & CLONE_VM) && b == 0;
  if (n != SYS_clone3 || !a) return false;
  const uint64_t *args = (const uint64_t *)a; /* struct clone_args: flags first, stack sixth */
  return !(args[0] & CLONE_VM) && args[5] == 0;
}

/* Around a call that forks and goes on in this frame on both sides: no signal, and nobody changes the heap. */
struct raw_fork {
  struct mu_fork state;
  sigset_t mask;
};

static void begin_fork(struct raw_fork *f) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &f->mask);
  mu_raw_fork_prepare(&f->state);
}

static void end_fork(struct raw_fork *f, bool in_child, bool by_libc) {
  if (in_child)
    mu_raw_fork_child(&f->state, by_libc);
  else
    mu_raw_fork_parent(&f->state);
  pthread_sigmask(SIG_SETMASK, &f->mask, NULL);
}

static long forking_call(long n, long a, long b, long c, long d, long e, long f) {
  struct raw_fork around;
  begin_fork(&around);
  long r = mu_sys_raw(n, a, b, c, d, e, f);
  end_fork(&around, r == 0, false);
  return r;
}

typedef pid_t (*fork_fn)(void);
typedef int (*clone_fn)(int (*)(void *), void *, int, void *, ...);

/* libc's own, which keep its records of threads right; looked up before main, since that may allocate. */
static fork_fn libc_fork;
static clone_fn libc_clone;

/* glibc's clone under a name that needs no look-up. */
extern int __clone(int (*)(void *), void *, int, void *, ...) __attribute__((weak));

__attribute__((constructor(102))) static void look_up(void) {
  MU_EARLY_CONST static const char name[] = "_Fork";
  libc_fork = (fork_fn)dlsym(RTLD_NEXT, name);
  libc_clone = __clone ? __clone : (clone_fn)dlsym(RTLD_NEXT, "clone");
}

static pid_t plain_fork(void) {
  return (pid_t)checked(mu_sys_raw(SYS_clone, SIGCHLD, 0, 0, 0, 0, 0));
}

MU_EXPORT pid_t _Fork(void);
pid_t _Fork(void) {
  struct raw_fork around;
  begin_fork(&around);
  pid_t r = libc_fork ? libc_fork() : plain_fork();
  end_fork(&around, r == 0, libc_fork != NULL);
  return r;
}

/* clone: the child runs a function, on a copy of this frame. */

struct child {
  int (*fn)(void *);
  void *arg;
  struct raw_fork around;
};

static int run_child(void *arg) {
  struct child *c = arg;
  end_fork(&c->around, true, false);
  return c->fn(c->arg);
}

MU_EXPORT int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);
int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...) {
  va_list rest;
  va_start(rest, arg);
  void *parent_tid = va_arg(rest, void *), *tls = va_arg(rest, void *), *child_tid = va_arg(rest, void *);
  va_end(rest);
  if (!libc_clone) {
    errno = ENOSYS;
    return -1;
  }
  if (flags & CLONE_VM) return libc_clone(fn, stack, flags, arg, parent_tid, tls, child_tid);
  struct child c = {.fn = fn, .arg = arg};
  begin_fork(&c.around);
  int r = libc_clone(run_child, stack, flags, &c, parent_tid, tls, child_tid), saved = errno;
  end_fork(&c.around, false, false);
  errno = saved;
  return r;
}

/* ---- futexes -------------------------------------------------------------------------------------------------------
 */

/* These write or read their word in a way that fails on a closed page instead of waiting; nothing was done then. */
static bool may_fail_closed(long operation) {
  switch (operation & FUTEX_CMD_MASK) {
  case FUTEX_WAKE_OP:
  case FUTEX_LOCK_PI:
  case FUTEX_UNLOCK_PI:
  case FUTEX_TRYLOCK_PI:
  case FUTEX_CMP_REQUEUE_PI:
  case FUTEX_WAIT_REQUEUE_PI:
    return true;
  default:
    return false;
  }
}

static bool in_heap(long address) {
  size_t page = mu_page_of((const void *)address);
  return page >= MU_RUN_PAGES && page < mu_arena_limit();
}

/* A store waits until the page is open. It must really be one: or-ing with 0 may be compiled to a load, which does not
 * wait where pages are write-protected. */
static void wait_until_open(long address) {
  volatile int *word = (volatile int *)address;
  int value = __atomic_load_n(word, __ATOMIC_RELAXED);
  __atomic_compare_exchange_n(word, &value, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

enum { FUTEX_TRIES = 1000 }; /* a page that is closed that often in a row is no heap page of ours */

static long futex_call(long a, long b, long c, long d, long e, long f) {
  long r = mu_sys_raw(SYS_futex, a, b, c, d, e, f);
  for (int i = 0; r == -EFAULT && i < FUTEX_TRIES && (in_heap(a) || in_heap(e)) && may_fail_closed(b); i++) {
    if (in_heap(a)) wait_until_open(a);
    if (in_heap(e)) wait_until_open(e);
    r = mu_sys_raw(SYS_futex, a, b, c, d, e, f);
  }
  return r;
}

/* ---- what one thread alone may do ----------------------------------------------------------------------------------
 */

static bool filters(long n, long a) {
  return (n == SYS_prctl && a == PR_SET_SECCOMP) ||
         (n == SYS_seccomp && (a == SECCOMP_SET_MODE_STRICT || a == SECCOMP_SET_MODE_FILTER));
}

/* Calls that make the threads of a process differ, and those that want it to have only one. */
static bool is_for_one_thread(long n, long a) {
  switch (n) {
  case SYS_prctl:
    return a == PR_SET_KEEPCAPS || a == PR_SET_SECUREBITS || a == PR_SET_SECCOMP;
  case SYS_seccomp:
    return filters(n, a);
  case SYS_unshare:
    return a & (CLONE_NEWUSER | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM);
  case SYS_capset:
  case SYS_setns:
    return true;
  default:
    return false;
  }
}

enum { ALONE_TRIES = 100, ALONE_NS = 1000000 }; /* a thread that was waited for is counted a moment longer */

static long call_alone(long n, long a, long b, long c, long d, long e) {
  if (filters(n, a)) mu_heap_ready(); /* what that takes may be forbidden then */
  mu_mesher_leave();
  long r = mu_sys_raw(n, a, b, c, d, e, 0);
  for (int i = 0; i < ALONE_TRIES && r == -EINVAL && (n == SYS_unshare || n == SYS_setns); i++) {
    _Atomic uint32_t never = 0;
    mu_futex_wait(&never, 0, ALONE_NS);
    r = mu_sys_raw(n, a, b, c, d, e, 0);
  }
  if (r >= 0 && filters(n, a)) mu_mesher_stay_away();
  mu_mesher_may_start();
  return r;
}

static long call(long n, long a, long b, long c, long d, long e) {
  return checked(is_for_one_thread(n, a) ? call_alone(n, a, b, c, d, e) : mu_sys_raw(n, a, b, c, d, e, 0));
}

MU_EXPORT int prctl(int option, ...);
int prctl(int option, ...) {
  va_list args;
  va_start(args, option);
  long b = va_arg(args, long), c = va_arg(args, long), d = va_arg(args, long), e = va_arg(args, long);
  va_end(args);
  return (int)call(SYS_prctl, option, b, c, d, e);
}

MU_EXPORT int capset(void *header, const void *data);
int capset(void *header, const void *data) {
  return (int)call(SYS_capset, (long)header, (long)data, 0, 0, 0);
}

MU_EXPORT int unshare(int flags);
int unshare(int flags) {
  return (int)call(SYS_unshare, flags, 0, 0, 0, 0);
}

MU_EXPORT int setns(int fd, int type);
int setns(int fd, int type) {
  return (int)call(SYS_setns, fd, type, 0, 0, 0);
}

MU_EXPORT long syscall(long n, ...);
long syscall(long n, ...) {
  va_list args;
  va_start(args, n);
  long a = va_arg(args, long), b = va_arg(args, long), c = va_arg(args, long), d = va_arg(args, long),
       e = va_arg(args, long), f = va_arg(args, long);
  va_end(args);
  if (is_fork(n, a, b)) return checked(forking_call(n, a, b, c, d, e, f));
  if (n == SYS_futex) return checked(futex_call(a, b, c, d, e, f));
  if (is_for_one_thread(n, a)) return call(n, a, b, c, d, e);
  mu_mark_for_call(n, a, b, c);
  return checked(mu_sys_raw(n, a, b, c, d, e, f));
}
