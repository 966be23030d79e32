/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/opened.h"
#include "src/options.h"
#include "uffd/engine.h"
#include "uffd/open_library.h"
#include <dlfcn.h>
#include <errno.h>
#include <liburing.h>

/* Result, name, parameters, arguments. */
#define URING(X)                                                                                                       \
  X(int, __io_uring_get_cqe,                                                                                           \
    (struct io_uring * ring, struct io_uring_cqe * *cqe, unsigned submit, unsigned n, sigset_t *mask),                 \
    (ring, cqe, submit, n, mask))                                                                                      \
  X(int, io_uring_queue_init_params, (unsigned entries, struct io_uring *ring, struct io_uring_params *p),             \
    (entries, ring, p))                                                                                                \
  X(int, io_uring_register_sync_cancel, (struct io_uring * ring, struct io_uring_sync_cancel_reg * reg), (ring, reg))  \
  X(int, io_uring_ring_dontfork, (struct io_uring * ring), (ring))                                                     \
  X(int, io_uring_submit, (struct io_uring * ring), (ring))                                                            \
  X(int, io_uring_submit_and_wait_timeout,                                                                             \
    (struct io_uring * ring, struct io_uring_cqe * *cqe, unsigned n, struct __kernel_timespec *t, sigset_t *mask),     \
    (ring, cqe, n, t, mask))

static struct {
#define X(result, name, parameters, arguments) result(*name) parameters;
  URING(X)
#undef X
  void (*queue_exit)(struct io_uring *);
} found;

#define X(result, name, parameters, arguments)                                                                         \
  result name parameters {                                                                                             \
    return found.name ? found.name arguments : -ENOSYS;                                                                \
  }
URING(X)
#undef X

void io_uring_queue_exit(struct io_uring *ring) {
  if (found.queue_exit) found.queue_exit(ring);
}

/* clang-format off */
#define X(result, name, parameters, arguments) {#name, &found.name},
static const struct mu_wanted wanted[] = {URING(X) {"io_uring_queue_exit", &found.queue_exit}, {NULL, NULL}};
#undef X
/* clang-format on */

/* Without the first of its functions it is not used at all. */
void mu_open_libraries(void) {
  if (!mu_options.mesh || !mu_options.ring) return;
  if (!mu_open_library(MU_LIBURING_SONAME, wanted)) found.io_uring_queue_init_params = NULL;
}
