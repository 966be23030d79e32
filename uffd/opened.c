/* SPDX-License-Identifier: Apache-2.0 */
#include "uffd/opened.h"
#include "src/options.h"
#include "uffd/engine.h"
#include <cap-ng.h>
#include <dlfcn.h>
#include <errno.h>
#include <liburing.h>
#include <sys/auxv.h>

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
#define CAPNG(X)                                                                                                       \
  X(int, capng_apply, (capng_select_t set), (set))                                                                     \
  X(int, capng_get_caps_process, (void), ())                                                                           \
  X(int, capng_update, (capng_act_t act, capng_type_t type, unsigned capability), (act, type, capability))

static struct {
#define X(result, name, parameters, arguments) result(*name) parameters;
  URING(X)
  CAPNG(X)
#undef X
  void (*queue_exit)(struct io_uring *);
  int (*have_capability)(capng_type_t, unsigned);
} found;

#define X(result, name, parameters, arguments)                                                                         \
  result name parameters {                                                                                             \
    return found.name ? found.name arguments : -ENOSYS;                                                                \
  }
URING(X)
CAPNG(X)
#undef X

void io_uring_queue_exit(struct io_uring *ring) {
  if (found.queue_exit) found.queue_exit(ring);
}

int capng_have_capability(capng_type_t type, unsigned capability) {
  return found.have_capability ? found.have_capability(type, capability) : 0;
}

/* Function pointers and what dlsym returns have the same representation. */
static bool find(void *library, const char *name, void *function) {
  *(void **)function = dlsym(library, name);
  return *(void **)function;
}

static void open_uring(void) {
  void *library = dlopen(MU_LIBURING_SONAME, RTLD_NOW | RTLD_LOCAL);
  bool all = library && find(library, "io_uring_queue_exit", &found.queue_exit);
#define X(result, name, parameters, arguments) all = all && find(library, #name, &found.name);
  URING(X)
#undef X
  if (!all) found.io_uring_queue_init_params = NULL; /* so that there is never a ring */
}

static void open_capng(void) {
  void *library = dlopen(MU_LIBCAP_NG_SONAME, RTLD_NOW | RTLD_LOCAL);
  bool all = library && find(library, "capng_have_capability", &found.have_capability);
#define X(result, name, parameters, arguments) all = all && find(library, #name, &found.name);
  CAPNG(X)
#undef X
  if (!all) found.capng_get_caps_process = NULL;
}

/* A program without a dynamic linker would get a second libc. */
void mu_open_libraries(void) {
  if (!mu_options.mesh || !getauxval(AT_BASE)) return;
  if (mu_options.ring) open_uring();
  if (mu_options.drop_caps) open_capng();
}
