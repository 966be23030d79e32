/* SPDX-License-Identifier: Apache-2.0 */
/* liburing as it was found: contained in the library, opened at run time, or not there (--without-liburing). */
#ifndef MU_URING_H
#define MU_URING_H

#ifdef MU_OPEN_DEPS
#include "uffd/opened.h"
#endif

#ifdef MU_HAVE_LIBURING
#include <liburing.h>
#else

#include <errno.h>
#include <linux/io_uring.h>
#include <linux/time_types.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* No ring can be made, so nothing else is ever called. */
struct io_uring {
  int none;
};
static inline int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p) {
  return (void)entries, (void)ring, (void)p, -ENOSYS;
}
static inline int io_uring_ring_dontfork(struct io_uring *ring) {
  return (void)ring, -ENOSYS;
}
static inline void io_uring_queue_exit(struct io_uring *ring) {
  (void)ring;
}
static inline int io_uring_register_sync_cancel(struct io_uring *ring, struct io_uring_sync_cancel_reg *reg) {
  return (void)ring, (void)reg, -ENOSYS;
}
static inline int io_uring_submit(struct io_uring *ring) {
  return (void)ring, -ENOSYS;
}
static inline int io_uring_submit_and_wait_timeout(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned n,
                                                   struct __kernel_timespec *t, void *mask) {
  return (void)ring, (void)cqe, (void)n, (void)t, (void)mask, -ENOSYS;
}
static inline int io_uring_peek_cqe(struct io_uring *ring, struct io_uring_cqe **cqe) {
  return (void)ring, *cqe = NULL, -ENOSYS;
}
static inline void io_uring_cqe_seen(struct io_uring *ring, struct io_uring_cqe *cqe) {
  (void)ring, (void)cqe;
}
static inline uint64_t io_uring_cqe_get_data64(const struct io_uring_cqe *cqe) {
  return cqe->user_data;
}
static inline struct io_uring_sqe *io_uring_get_sqe(struct io_uring *ring) {
  return (void)ring, NULL;
}
static inline void io_uring_sqe_set_data64(struct io_uring_sqe *sqe, uint64_t data) {
  sqe->user_data = data;
}
static inline void io_uring_prep_fallocate(struct io_uring_sqe *sqe, int fd, int mode, off_t offset, off_t len) {
  (void)sqe, (void)fd, (void)mode, (void)offset, (void)len;
}
static inline void io_uring_prep_madvise(struct io_uring_sqe *sqe, void *start, off_t len, int advice) {
  (void)sqe, (void)start, (void)len, (void)advice;
}

#endif
#endif
