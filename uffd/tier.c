/* SPDX-License-Identifier: Apache-2.0 */
/* Finds out what the kernel lets this process do. */
#include "src/log.h"
#include "src/options.h"
#include "src/sys.h"
#include "uffd/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

struct mu_engine mu_engine = {.uffd = -1, .pagemap = -1};

struct version {
  int major, minor, patch;
};

static struct version kernel_version(void) {
  struct utsname u;
  struct version v = {0, 0, 0};
  if (mu_sys_call(MU_SYS_uname, (long)&u, 0, 0, 0, 0, 0) < 0) return v;
  char *at = u.release;
  v.major = (int)strtol(at, &at, 10);
  if (*at == '.') v.minor = (int)strtol(at + 1, &at, 10);
  if (*at == '.') v.patch = (int)strtol(at + 1, &at, 10);
  return v;
}

/* UFFDIO_MOVE was merged in 6.8; what crashed or corrupted was mended in 6.12.43 and 6.17. */
static bool move_is_sound(struct version v) {
  if (v.major != 6) return v.major > 6;
  return v.minor >= 17 || (v.minor == 12 && v.patch >= 43);
}

/* Write-protection of anonymous memory corrupted data from 5.7 to 5.11. */
static bool protect_is_sound(struct version v) {
  return v.major > 5 || (v.major == 5 && v.minor >= 12);
}

static int open_device(void) {
  int dev = mu_open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
  if (dev < 0) return dev;
  int fd = (int)mu_sys_call(MU_SYS_ioctl, dev, (long)MU_USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK, 0, 0, 0);
  mu_close(dev);
  return fd;
}

static int open_syscall(int extra) {
  return (int)mu_sys_call(MU_SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | extra, 0, 0, 0, 0, 0);
}

static int handshake(int fd, uint64_t features, uint64_t *has) {
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  int r = mu_ioctl(fd, UFFDIO_API, &api);
  if (has) *has = r < 0 ? 0 : api.features;
  return r;
}

/* What the kernel has is asked on a throw-away descriptor: UFFDIO_API works once on each. */
static uint64_t features(int (*open_one)(void)) {
  uint64_t has = 0;
  int fd = open_one();
  if (fd < 0) return 0;
  handshake(fd, 0, &has);
  mu_close(fd);
  return has;
}

static int open_full(void) {
  int fd = open_device();
  return fd >= 0 ? fd : open_syscall(0);
}

static int open_user(void) {
  return open_syscall(MU_UFFD_USER_MODE_ONLY);
}

static void settle(enum mu_tier tier, const char *why) {
  mu_format(mu_engine.why, sizeof mu_engine.why, "%s", why);
  atomic_store_explicit(&mu_engine.tier, (uint32_t)tier, memory_order_release);
}

static bool try_full(void) {
  struct version v = kernel_version();
  uint64_t has = features(open_full), want = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
  if (!(has & UFFD_FEATURE_PAGEFAULT_FLAG_WP)) return false;
  bool move = (has & MU_UFFD_FEATURE_MOVE) && move_is_sound(v) && mu_options.best_tier <= MU_TIER_FULL;
  if (!move && !protect_is_sound(v)) return false;
  int fd = open_full();
  if (fd < 0 || handshake(fd, want | (move ? MU_UFFD_FEATURE_MOVE : 0), NULL) < 0) {
    if (fd >= 0) mu_close(fd);
    return false;
  }
  mu_engine.uffd = fd;
  mu_engine.move = move;
  settle(move ? MU_TIER_FULL : MU_TIER_FULL_WP,
         move ? "userfaultfd with UFFDIO_MOVE"
              : "userfaultfd with write-protection; UFFDIO_MOVE needs Linux 6.12.43 or 6.17");
  return true;
}

static const char *refusal(int error) {
  switch (error) {
  case EPERM:
    return "no userfaultfd for kernel faults: give access to /dev/userfaultfd, or CAP_SYS_PTRACE";
  case EACCES:
    return "no access to /dev/userfaultfd";
  case ENOSYS:
    return "this kernel or a sandbox has no userfaultfd";
  default:
    return "userfaultfd cannot be used";
  }
}

void mu_tier_probe(void) {
  if (mu_options.best_tier <= MU_TIER_FULL_WP && try_full()) return;
  int fd = mu_options.best_tier <= MU_TIER_USER ? open_user() : -ENOSYS;
  if (fd >= 0) {
    mu_close(fd);
    settle(MU_TIER_USER,
           mu_caps_have_ptrace()
               ? "userfaultfd for user-mode faults only, as asked for or by a sandbox"
               : "userfaultfd for user-mode faults only: give access to /dev/userfaultfd, or CAP_SYS_PTRACE");
    return;
  }
  settle(MU_TIER_NONE, refusal(-fd));
}

enum mu_tier mu_engine_tier(void) {
  return (enum mu_tier)atomic_load_explicit(&mu_engine.tier, memory_order_acquire);
}

const char *mu_engine_why(void) {
  return mu_engine_tier() ? mu_engine.why : "not probed: the heap was never worth it";
}
