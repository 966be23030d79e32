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

struct wanted {
  const char *name;
  void *function; /* where its address goes */
};

/* Function pointers and what dlsym returns have the same representation. */
static bool find(void *library, const struct wanted *w) {
  return (*(void **)w->function = dlsym(library, w->name)) != NULL;
}

/* False: the library, or one of its functions, is not there. */
static bool open_library(const char *soname, const struct wanted *wanted) {
  void *library = dlopen(soname, RTLD_NOW | RTLD_LOCAL);
  bool all = library != NULL;
  for (; all && wanted->name; wanted++) all = find(library, wanted);
  return all;
}

/* clang-format off */
#define X(result, name, parameters, arguments) {#name, &found.name},
static const struct wanted of_uring[] = {URING(X) {"io_uring_queue_exit", &found.queue_exit}, {NULL, NULL}};
static const struct wanted of_capng[] = {CAPNG(X) {"capng_have_capability", &found.have_capability}, {NULL, NULL}};
#undef X
/* clang-format on */

/* A program without a dynamic linker would get a second libc. */
void mu_open_libraries(void) {
  if (!mu_options.mesh || !getauxval(AT_BASE)) return;
  /* Without the first of its functions a library is not used at all. */
  if (mu_options.ring && !open_library(MU_LIBURING_SONAME, of_uring)) found.io_uring_queue_init_params = NULL;
  if (mu_options.drop_caps && !open_library(MU_LIBCAP_NG_SONAME, of_capng)) found.capng_get_caps_process = NULL;
}
