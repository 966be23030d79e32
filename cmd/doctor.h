/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel lets somebody do: asked by trying, in a child process, since a sandbox may kill who asks. */
#ifndef CMD_DOCTOR_H
#define CMD_DOCTOR_H

#include "cmd/cmd.h"

struct probe {
  int device;                                      /* of opening /dev/userfaultfd and asking it: 0 or errno */
  int full;                                        /* of userfaultfd for kernel faults by system call: 0 or errno */
  int user;                                        /* of userfaultfd for user-mode faults: 0 or errno */
  uint64_t features;                               /* of the best that could be opened */
  int close_range, process_madvise, ring, pagemap; /* 0 or errno */
};
enum { KILLED = -1 }; /* instead of an errno: the sandbox ended who asked */

void probe_kernel(struct probe *p);

#endif
