/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the program does to memory of its own that a pass would undo, or could not bear: calls that give a range
 * properties which a new mapping has not, a userfaultfd of the program's own, and locks that threads of other
 * processes, or the kernel, change by operations that do not wait for a closed page. The spans are left alone until
 * they are empty. Seen are calls of libc and its syscall(), not system call instructions of the program's own.
 */
#include "src/marks.h"
#include "src/global_heap.h"
#include "src/pass.h"
#include "src/sys.h"
#include "src/thread_local_heap.h"
#include <dlfcn.h>
#include <errno.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#ifndef SYS_mseal
#define SYS_mseal 462
#endif

static bool in_heap(const void *start, size_t len) {
  const char *from = start, *heap = mu_arena.base, *end = mu_page_address(mu_arena_limit());
  return from < end && (from >= heap || (size_t)(heap - from) < len);
}

static void leave_alone(const void *start, size_t len) {
  enum { PATIENCE_NS = 50000000 };
  if (!in_heap(start, len)) return;
  if ((const char *)start < mu_arena.base) len -= (size_t)(mu_arena.base - (const char *)start), start = mu_arena.base;
  bool entered = mu_heap_enter(), locked = mu_pass_seize(mu_now_ns() + PATIENCE_NS);
  mu_spans_exempt(start, len);
  if (locked) mu_lock_let_go(&mu_passes);
  if (entered) mu_heap_leave();
}

/* Advice that does something once. All other stays with the mapping. */
static bool is_done_at_once(long advice) {
  switch (advice) {
  case MADV_NORMAL:
  case MADV_WILLNEED:
  case MADV_DONTNEED:
  case MADV_FREE:
  case MADV_REMOVE:
  case 20: /* COLD */
  case 21: /* PAGEOUT */
  case 22: /* POPULATE_READ */
  case 23: /* POPULATE_WRITE */
  case 24: /* DONTNEED_LOCKED */
  case 25: /* COLLAPSE */
    return true;
  default:
    return false;
  }
}

/* A userfaultfd of the program's own. */
static void mark_registered(const struct uffdio_register *r) {
  leave_alone((const void *)(uintptr_t)r->range.start, (size_t)r->range.len);
}

void mu_mark_for_call(long n, long a, long b, long c) {
  switch (n) {
  case SYS_madvise:
    if (is_done_at_once(c)) return;
    break;
  case SYS_ioctl:
    if ((unsigned)b == UFFDIO_REGISTER && c) mark_registered((const struct uffdio_register *)c);
    return;
  case SYS_mprotect:
  case SYS_pkey_mprotect:
  case SYS_mbind:
  case SYS_mseal:
    break;
  default:
    return;
  }
  leave_alone((const void *)a, (size_t)b);
}

static int call(long n, long a, long b, long c, long d) {
  mu_mark_for_call(n, a, b, c);
  long r = mu_sys_raw(n, a, b, c, d, 0, 0);
  if (r >= 0) return (int)r;
  errno = (int)-r;
  return -1;
}

MU_EXPORT int madvise(void *start, size_t len, int advice) {
  return call(SYS_madvise, (long)start, (long)len, advice, 0);
}

MU_EXPORT int mprotect(void *start, size_t len, int protection) {
  return call(SYS_mprotect, (long)start, (long)len, protection, 0);
}

MU_EXPORT int pkey_mprotect(void *start, size_t len, int protection, int key) {
  return key == -1 ? mprotect(start, len, protection)
                   : call(SYS_pkey_mprotect, (long)start, (long)len, protection, key);
}

#ifdef __GLIBC__
typedef unsigned long request_type;
#else
typedef int request_type;
#endif

/* The kernel looks at 32 bits of the request. */
MU_EXPORT int ioctl(int fd, request_type request, ...) {
  va_list args;
  va_start(args, request);
  long argument = va_arg(args, long);
  va_end(args);
  return call(SYS_ioctl, fd, (long)(unsigned)request, argument, 0);
}

/* ---- locks: in a static program libc's own names cannot be had twice ----------------------------------------------
 */

#ifdef PIC
static void *next(void **known, const char *name) {
  void *f = __atomic_load_n(known, __ATOMIC_RELAXED);
  if (!f) {
    f = dlsym(RTLD_NEXT, name);
    __atomic_store_n(known, f, __ATOMIC_RELAXED);
  }
  return f;
}

typedef int (*mutex_init)(pthread_mutex_t *, const pthread_mutexattr_t *);
typedef int (*cond_init)(pthread_cond_t *, const pthread_condattr_t *);
typedef int (*rwlock_init)(pthread_rwlock_t *, const pthread_rwlockattr_t *);
typedef int (*barrier_init)(pthread_barrier_t *, const pthread_barrierattr_t *, unsigned);
typedef int (*semaphore_init)(sem_t *, int, unsigned);

#define NEXT(type, name)                                                                                               \
  static void *known;                                                                                                  \
  type f = (type)next(&known, name);                                                                                   \
  if (!f) return ENOSYS

/* Priority inheritance and robustness are the kernel's to look after, by operations that fail on a closed page. */
MU_EXPORT int pthread_mutex_init(pthread_mutex_t *m, const pthread_mutexattr_t *a) {
  NEXT(mutex_init, "pthread_mutex_init");
  int shared = PTHREAD_PROCESS_PRIVATE, robust = PTHREAD_MUTEX_STALLED, protocol = PTHREAD_PRIO_NONE;
  if (a) {
    pthread_mutexattr_getpshared(a, &shared);
    pthread_mutexattr_getrobust(a, &robust);
    pthread_mutexattr_getprotocol(a, &protocol);
  }
  if (shared != PTHREAD_PROCESS_PRIVATE || robust != PTHREAD_MUTEX_STALLED || protocol != PTHREAD_PRIO_NONE)
    leave_alone(m, sizeof *m);
  return f(m, a);
}

#define LEAVE_ALONE_IF_SHARED(kind, object, attributes)                                                                \
  do {                                                                                                                 \
    int shared_ = PTHREAD_PROCESS_PRIVATE;                                                                             \
    if (attributes) pthread_##kind##attr_getpshared(attributes, &shared_);                                             \
    if (shared_ != PTHREAD_PROCESS_PRIVATE) leave_alone(object, sizeof *(object));                                     \
  } while (0)

MU_EXPORT int pthread_cond_init(pthread_cond_t *c, const pthread_condattr_t *a) {
  NEXT(cond_init, "pthread_cond_init");
  LEAVE_ALONE_IF_SHARED(cond, c, a);
  return f(c, a);
}

MU_EXPORT int pthread_rwlock_init(pthread_rwlock_t *l, const pthread_rwlockattr_t *a) {
  NEXT(rwlock_init, "pthread_rwlock_init");
  LEAVE_ALONE_IF_SHARED(rwlock, l, a);
  return f(l, a);
}

MU_EXPORT int pthread_barrier_init(pthread_barrier_t *b, const pthread_barrierattr_t *a, unsigned count) {
  NEXT(barrier_init, "pthread_barrier_init");
  LEAVE_ALONE_IF_SHARED(barrier, b, a);
  return f(b, a, count);
}

static int failed(int error) {
  if (!error) return 0;
  errno = error;
  return -1;
}

static int sem_init_with(sem_t *s, int shared, unsigned value) {
  NEXT(semaphore_init, "sem_init");
  return f(s, shared, value) < 0 ? errno : 0;
}

MU_EXPORT int sem_init(sem_t *s, int shared, unsigned value) {
  if (shared) leave_alone(s, sizeof *s);
  return failed(sem_init_with(s, shared, value));
}
#endif
