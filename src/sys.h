/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every system call of the library, in one place: raw (errno stays as it is, nobody's interposed wrapper is called),
 * returning the kernel's result, or -errno. One hook can make any of them fail.
 */
#ifndef MU_SYS_H
#define MU_SYS_H

#include "src/common.h"
#include <sys/types.h>
#include <sys/uio.h>

/* clang-format off */
#define MU_SYS_LIST(X)                                                                                                 \
  X(mmap) X(munmap) X(mprotect) X(madvise) X(mremap) X(futex) X(openat) X(close) X(read) X(write) X(pread64)           \
  X(ioctl) X(memfd_create) X(ftruncate) X(fallocate) X(fcntl) X(close_range) X(process_madvise) X(userfaultfd)         \
  X(ppoll) X(getrandom) X(sched_yield) X(gettid) X(prlimit64) X(pidfd_open) X(eventfd2) X(io_uring_setup)               \
  X(io_uring_enter) X(sched_setscheduler) X(sched_getattr) X(sched_setattr) X(sched_setaffinity) X(rt_sigprocmask)     \
  X(uname) X(getdents64) X(prctl) X(getpid) X(clone3) X(capget) X(capset) X(readlinkat) X(pidfd_getfd)         \
  X(move_pages) X(mbind) X(sigaltstack)
/* Requests of ioctl, each a kind of its own for the hook, with its number. */
#define MU_SYS_REQUEST_LIST(X)                                                                                         \
  X(USERFAULTFD_IOC_NEW, MU_USERFAULTFD_IOC_NEW) X(UFFDIO_API, UFFDIO_API) X(UFFDIO_REGISTER, UFFDIO_REGISTER)         \
  X(UFFDIO_UNREGISTER, UFFDIO_UNREGISTER) X(UFFDIO_MOVE, MU_UFFDIO_MOVE) X(UFFDIO_COPY, UFFDIO_COPY)                   \
  X(UFFDIO_ZEROPAGE, UFFDIO_ZEROPAGE) X(UFFDIO_WRITEPROTECT, UFFDIO_WRITEPROTECT) X(UFFDIO_WAKE, UFFDIO_WAKE)
/* clang-format on */

enum mu_sys {
#define X(name) MU_SYS_##name,
  MU_SYS_LIST(X)
#undef X
      MU_SYS_CALLS,
  MU_SYS_BEFORE_REQUESTS = MU_SYS_CALLS - 1,
#define X(name, number) MU_SYS_##name,
  MU_SYS_REQUEST_LIST(X)
#undef X
      MU_SYS_COUNT
};

/*
 * The injection hook: when set, it is asked before each call with the call's kind and how often that kind was called
 * before (from 0). A positive result is the errno that the call fails with, without being made. An ioctl that is not
 * refused as such is asked for once more, as its request. Set it before threads exist.
 * MESH_UFFD_TEST_FAIL=name:first[-last]:errno[,...] sets a hook of this kind from the environment.
 */
typedef int (*mu_sys_hook_fn)(enum mu_sys call, uint64_t index);
extern mu_sys_hook_fn mu_sys_hook;
void mu_sys_hook_from_text(const char *text);

/* How often a call was made since a hook was set; false past the last. */
bool mu_sys_made(unsigned call, const char **of, uint64_t *times);

/* Any system call, as it is, for those that the program makes through us. */
long mu_sys_raw(long number, long a, long b, long c, long d, long e, long f);

long mu_sys_call(enum mu_sys call, long a, long b, long c, long d, long e, long f);

/* Makes each of the calls once, with arguments that no call takes: each fails, and nothing happens. */
void mu_sys_make_each(void);

/* For calls that a library makes on our behalf: the errno that the hook wants this one to fail with, or 0. */
int mu_sys_refused(enum mu_sys call);
/* This process's number, asked of the kernel each time: a fork by any means is seen. */
int mu_pid(void);

/* Memory. Addresses come back as void *, NULL with *err set (positive) when refused. */
void *mu_mmap(void *at, size_t len, int prot, int flags, int fd, off_t off, int *err);
/* Maps over what there is, readable and writable. False: refused, and what there was is there still. The kernel may
 * take it away before it refuses: then it is asked again until it maps. */
bool mu_mmap_over(void *at, size_t len, int flags, int fd, off_t off);
static inline int mu_munmap(void *p, size_t n) {
  return (int)mu_sys_call(MU_SYS_munmap, (long)p, (long)n, 0, 0, 0, 0);
}
static inline int mu_mprotect(void *p, size_t n, int prot) {
  return (int)mu_sys_call(MU_SYS_mprotect, (long)p, (long)n, prot, 0, 0, 0);
}
static inline int mu_madvise(void *p, size_t n, int advice) {
  return (int)mu_sys_call(MU_SYS_madvise, (long)p, (long)n, advice, 0, 0, 0);
}
static inline int mu_ioctl(int fd, unsigned long request, void *arg) {
  return (int)mu_sys_call(MU_SYS_ioctl, fd, (long)request, (long)arg, 0, 0, 0);
}
static inline int mu_open(const char *path, int flags) {
  return (int)mu_sys_call(MU_SYS_openat, -100 /* AT_FDCWD */, (long)path, flags, 0, 0, 0);
}
static inline int mu_close(int fd) {
  return (int)mu_sys_call(MU_SYS_close, fd, 0, 0, 0, 0, 0);
}
static inline ssize_t mu_read(int fd, void *to, size_t n) {
  return mu_sys_call(MU_SYS_read, fd, (long)to, (long)n, 0, 0, 0);
}
static inline ssize_t mu_pread(int fd, void *to, size_t n, uint64_t at) {
  return mu_sys_call(MU_SYS_pread64, fd, (long)to, (long)n, (long)at, 0, 0);
}
static inline ssize_t mu_write(int fd, const void *from, size_t n) {
  return mu_sys_call(MU_SYS_write, fd, (long)from, (long)n, 0, 0, 0);
}

/* poll; less than 0 ms: for ever. */
struct pollfd;
int mu_poll(struct pollfd *fds, unsigned n, int ms);

/* Sleeps while *word == expected, at most timeout_ns (negative: for ever). Woken, timed out or not: returns. */
void mu_futex_wait(_Atomic uint32_t *word, uint32_t expected, int64_t timeout_ns);
void mu_futex_wake(_Atomic uint32_t *word, int count);

/* CLOCK_MONOTONIC and this thread's CPU time, in ns. */
uint64_t mu_now_ns(void);
uint64_t mu_thread_cpu_ns(void);

/* Reads a small file into buf as a string; returns its length or -errno. mu_read_all: one that is open. */
ssize_t mu_read_all(int fd, char *buf, size_t room);
ssize_t mu_read_file(const char *path, char *buf, size_t room);

#endif
