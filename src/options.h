/* SPDX-License-Identifier: Apache-2.0 */
/* The environment variables MESH_UFFD_*: read once, at the first allocation. Ignored under secure execution. */
#ifndef MU_OPTIONS_H
#define MU_OPTIONS_H

#include "src/common.h"

struct mu_options {
  uint32_t mesh;            /* MESH_UFFD_MESH: 0 turns meshing off; 1 */
  uint32_t stats;           /* MALLOCSTATS: 0, 1 or 2 */
  uint32_t cpu_percent;     /* MESH_UFFD_CPU_PERCENT: share of one core for background work, 1 to 100; 5 */
  uint32_t pause_us;        /* MESH_UFFD_PAUSE_US: how long a pass may hold a barrier, 20 to 100000 us; 200 */
  uint32_t decay_ms;        /* MESH_UFFD_DECAY_MS: unused pages go back after this, 0 to 1800000 ms; 1000 */
  uint32_t mapping_share;   /* MESH_UFFD_MAPPINGS: percent of vm.max_map_count for meshing, 0 to 100; 80 */
  uint32_t drop_caps;       /* MESH_UFFD_DROP_CAPS: 1 drops CAP_SYS_PTRACE after opening userfaultfd; 0 */
  uint32_t ring;            /* MESH_UFFD_RING: 0 does without io_uring; 1 */
  uint32_t huge_pages;      /* MESH_UFFD_HUGE_PAGES: 0 none, 1 as the system says, 2 asks for them; 1 */
  uint32_t check;           /* MESH_UFFD_CHECK: 1 checks each free at once, 2 what is beyond an object's end too; 0 */
  uint32_t abort;           /* MESH_UFFD_ABORT: 0 goes on after a misuse of the heap; 1 */
  uint32_t profile;         /* MESH_UFFD_PROFILE: bytes from one sample to the next, on average; 0: no heap profile */
  uint32_t profile_signal;  /* MESH_UFFD_PROFILE_SIGNAL: writes the profile; 0: none does */
  const char *profile_file; /* MESH_UFFD_PROFILE_FILE: written at exit; NULL: none is. In the environment itself */
  uint32_t best_tier;       /* MESH_UFFD_TEST_TIER: 1 full, 2 wp, 3 user, 4 none: nothing better is used; 1 */
  uint32_t eager;           /* MESH_UFFD_TEST_EAGER: 1 meshes any heap, all the time; 0 */
  uint32_t test_page;       /* MESH_UFFD_TEST_PAGE_SIZE: bytes, a power of two, if larger than the kernel's; 0 */
  uint32_t nodes;    /* MESH_UFFD_TEST_NODES: so many nodes are made up, each run on the next; 0: the machine's */
  uint32_t validate; /* MESH_UFFD_TEST_VALIDATE: 1 checks the whole heap after each pass; 0 */
};

extern struct mu_options mu_options;

/* Reads envp (NULL-terminated "NAME=value" strings). Bad values are named on standard error, their defaults stay. */
void mu_options_read(char *const *envp);

#endif
