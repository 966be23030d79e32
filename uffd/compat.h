/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kernels have and older headers lack (Debian 12 ships those of Linux 6.1). Each definition is checked against the
 * header's where the header has it.
 */
#ifndef MU_COMPAT_H
#define MU_COMPAT_H

#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

/* Linux 5.6 */
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
/* Linux 5.10 */
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
/* Linux 5.9 */
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#define MU_CLOSE_RANGE_UNSHARE (1U << 1)
/* Linux 5.11 */
#define MU_UFFD_USER_MODE_ONLY 1
/* Linux 6.1 */
#define MU_USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
/* Linux 6.3 */
#define MU_MFD_NOEXEC_SEAL 0x0008U
/* Linux 5.14 */
#define MU_MADV_POPULATE_READ  22
#define MU_MADV_POPULATE_WRITE 23
/* Linux 5.18 */
#define MU_MADV_DONTNEED_LOCKED 24

/* Linux 6.8 */
struct mu_uffdio_move {
  __u64 dst, src, len, mode;
  __s64 move;
};
#define MU_UFFDIO_MOVE          _IOWR(0xAA, 0x05, struct mu_uffdio_move)
#define MU_UFFDIO_MOVE_DONTWAKE ((__u64)1 << 0)
#define MU_UFFD_FEATURE_MOVE    ((__u64)1 << 16)

#ifdef UFFDIO_MOVE
_Static_assert(UFFDIO_MOVE == MU_UFFDIO_MOVE, "UFFDIO_MOVE differs from the kernel's header");
_Static_assert(UFFD_FEATURE_MOVE == MU_UFFD_FEATURE_MOVE, "UFFD_FEATURE_MOVE differs from the kernel's header");
#endif
#ifdef UFFD_USER_MODE_ONLY
_Static_assert(UFFD_USER_MODE_ONLY == MU_UFFD_USER_MODE_ONLY, "UFFD_USER_MODE_ONLY differs");
#endif
#ifdef USERFAULTFD_IOC_NEW
_Static_assert(USERFAULTFD_IOC_NEW == MU_USERFAULTFD_IOC_NEW, "USERFAULTFD_IOC_NEW differs");
#endif
#ifdef MFD_NOEXEC_SEAL
_Static_assert(MFD_NOEXEC_SEAL == MU_MFD_NOEXEC_SEAL, "MFD_NOEXEC_SEAL differs");
#endif
#ifdef MADV_POPULATE_READ
_Static_assert(MADV_POPULATE_READ == MU_MADV_POPULATE_READ, "MADV_POPULATE_READ differs");
#endif

/* In /proc/self/pagemap. */
#define MU_PM_PRESENT   ((__u64)1 << 63)
#define MU_PM_SWAPPED   ((__u64)1 << 62)
#define MU_PM_FILE      ((__u64)1 << 61)
#define MU_PM_EXCLUSIVE ((__u64)1 << 56)

#endif
