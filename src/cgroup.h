/* SPDX-License-Identifier: Apache-2.0 */
/* Where the files of this process's control group are. */
#ifndef MU_CGROUP_H
#define MU_CGROUP_H

#include "src/common.h"

enum { MU_CGROUP_PATH = 512 };

struct mu_cgroup {
  char path[MU_CGROUP_PATH]; /* of its directory */
  size_t top;                /* so much of it is the mount point: above that nothing can be seen */
};

/*
 * The group in the hierarchy of a controller of version 1, or of version 2 (controller NULL). `groups` and `mounts` are
 * the paths of /proc/self/cgroup and /proc/self/mountinfo. Of what is mounted, or of the process's place in it, perhaps
 * only a part can be seen: then it is the nearest group above that can. False: there is none.
 */
bool mu_cgroup_find(struct mu_cgroup *g, const char *controller, const char *groups, const char *mounts);
/* Goes on to the group above. False: that was the topmost that can be seen. */
bool mu_cgroup_up(struct mu_cgroup *g);
/* Opens a file of the group: a descriptor or -errno. */
int mu_cgroup_open(const struct mu_cgroup *g, const char *name, int flags);

#endif
