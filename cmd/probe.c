/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/doctor.h"
#include "uffd/compat.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_io_uring_setup
#define SYS_io_uring_setup 425
#endif

struct answer {
  int error;
  uint64_t features;
};

static struct answer of_descriptor(int fd) {
  struct uffdio_api api = {.api = UFFD_API};
  struct answer a = {fd < 0 ? errno : 0, 0};
  if (fd < 0) return a;
  if (syscall(SYS_ioctl, fd, UFFDIO_API, &api) < 0)
    a.error = errno;
  else
    a.features = api.features;
  close(fd);
  return a;
}

static struct answer of_result(long result) {
  return (struct answer){result < 0 ? errno : 0, 0};
}

static struct answer ask_device(void) {
  int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  return of_descriptor(device < 0 ? -1 : ioctl(device, MU_USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
}
static struct answer ask_full(void) {
  return of_descriptor((int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
}
static struct answer ask_user(void) {
  return of_descriptor((int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | MU_UFFD_USER_MODE_ONLY));
}
static struct answer ask_close_range(void) {
  return of_result(syscall(SYS_close_range, 1000000, 1000000, MU_CLOSE_RANGE_UNSHARE));
}
/* Of no memory: whether the call is there and allowed. */
static struct answer ask_process_madvise(void) {
  struct iovec none = {NULL, 0};
  int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  if (self < 0) return of_result(-1);
  return of_result(syscall(SYS_process_madvise, self, &none, 1UL, MADV_DONTNEED, 0U));
}
/* Wrong on purpose: EFAULT or EINVAL say that it is allowed. */
static struct answer ask_ring(void) {
  struct answer a = of_result(syscall(SYS_io_uring_setup, 1, NULL));
  if (a.error == EFAULT || a.error == EINVAL) a.error = 0;
  return a;
}
static struct answer ask_pagemap(void) {
  int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  return of_result(fd);
}

static struct answer ask(struct answer (*question)(void)) {
  struct answer a = {KILLED, 0};
  int ends[2], status;
  if (pipe2(ends, O_CLOEXEC) < 0) die(FAILED, "pipe: %s", strerror(errno));
  pid_t child = fork();
  if (child < 0) die(FAILED, "fork: %s", strerror(errno));
  if (child == 0) {
    a = question();
    _exit(write(ends[1], &a, sizeof a) != sizeof a);
  }
  close(ends[1]);
  if (read(ends[0], &a, sizeof a) != sizeof a) a = (struct answer){KILLED, 0};
  close(ends[0]);
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return a;
}

void probe_kernel(struct probe *p) {
  fflush(NULL);
  struct answer device = ask(ask_device), full = ask(ask_full), user = ask(ask_user);
  *p = (struct probe){.device = device.error,
                      .full = full.error,
                      .user = user.error,
                      .features = device.features | full.features | user.features,
                      .close_range = ask(ask_close_range).error,
                      .process_madvise = ask(ask_process_madvise).error,
                      .ring = ask(ask_ring).error,
                      .pagemap = ask(ask_pagemap).error};
}
