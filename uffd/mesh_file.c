/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Mesh files: memfds that packed units live in. Nobody counts who maps one: once the descriptor is closed, its memory
 * goes with its last mapping, in whichever process.
 */
#include "src/sys.h"
#include "uffd/internal.h"
#include "uffd/ring.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>

#ifndef F_ADD_SEALS
#define F_ADD_SEALS 1033
#endif
enum { SEAL_SEAL = 1, SEAL_SHRINK = 2, SEAL_GROW = 4, SEAL_FUTURE_WRITE = 16 };
enum { CLOEXEC = 1, ALLOW_SEALING = 2 };

/* Growing a file past RLIMIT_FSIZE sends SIGXFSZ. */
static bool may_grow_to(size_t bytes) {
  struct rlimit limit;
  if (mu_sys_call(MU_SYS_prlimit64, 0, RLIMIT_FSIZE, 0, (long)&limit, 0, 0) < 0) return false;
  return limit.rlim_cur >= bytes;
}

static int make_memfd(void) {
  long name = (long)"mesh-uffd";
  int fd = (int)mu_sys_call(MU_SYS_memfd_create, name, CLOEXEC | ALLOW_SEALING | MU_MFD_NOEXEC_SEAL, 0, 0, 0, 0);
  return fd == -EINVAL ? (int)mu_sys_call(MU_SYS_memfd_create, name, CLOEXEC | ALLOW_SEALING, 0, 0, 0, 0) : fd;
}

int mu_file_create(struct mu_mesh_file *file, size_t bytes) {
  if (!may_grow_to(bytes)) return -EFBIG;
  int fd = make_memfd(), err = 0;
  if (fd < 0) return fd;
  void *window = NULL;
  long r = mu_sys_call(MU_SYS_ftruncate, fd, (long)bytes, 0, 0, 0, 0);
  if (r == 0) window = mu_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0, &err);
  if (window && mu_madvise(window, bytes, MADV_DONTFORK) < 0) { /* a child must not be able to store into it */
    mu_munmap(window, bytes);
    window = NULL;
    err = ENOMEM;
  }
  if (!window) {
    mu_close(fd);
    return r < 0 ? (int)r : -err;
  }
  *file = (struct mu_mesh_file){.fd = fd, .window = window, .bytes = bytes};
  return 0;
}

bool mu_file_prepare_begin(struct mu_mesh_file *file, uint64_t offset, size_t len) {
  return mu_ring_fallocate_begin(file->fd, offset, len);
}

int mu_file_prepare_wait(void) {
  return mu_ring_wait();
}

int mu_file_prepare(struct mu_mesh_file *file, uint64_t offset, size_t len) {
  return mu_fallocate(file->fd, offset, len);
}

int mu_file_unmake(struct mu_mesh_file *file, uint64_t offset, size_t len) {
  enum { KEEP_SIZE = 1, PUNCH_HOLE = 2 };
  return (int)mu_sys_call(MU_SYS_fallocate, file->fd, KEEP_SIZE | PUNCH_HOLE, (long)offset, (long)len, 0, 0);
}

void mu_file_seal(struct mu_mesh_file *file) {
  if (file->window) mu_munmap(file->window, file->bytes);
  if (file->fd >= 0) {
    /* A refused seal costs nothing but the promise: nobody has the descriptor any more after this. Not F_SEAL_WRITE,
     * for which the kernel has every processor flush its lists, and waits for whoever holds a page. */
    mu_sys_call(MU_SYS_fcntl, file->fd, F_ADD_SEALS, SEAL_SEAL | SEAL_SHRINK | SEAL_GROW | SEAL_FUTURE_WRITE, 0, 0, 0);
    mu_close(file->fd);
  }
  *file = (struct mu_mesh_file){.fd = -1};
}
