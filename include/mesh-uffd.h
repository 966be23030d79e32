/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mesh-uffd: a malloc that compacts the heap of a running program.
 *
 * Every function here may be called from any thread at any time, except from a signal handler. None of them fails
 * because meshing is unavailable: where the kernel does not allow it they do nothing and say so in their result.
 * Sizes are bytes, times are nanoseconds, unless a name says otherwise.
 */
#ifndef MESH_UFFD_H
#define MESH_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MESH_UFFD_VERSION_MAJOR 0
#define MESH_UFFD_VERSION_MINOR 1
#define MESH_UFFD_VERSION_PATCH 0

/* The version of the library in use, as "major.minor.patch". Static storage. */
const char *mesh_uffd_version(void);

/* What the kernel lets this process do, best first. */
enum mesh_uffd_tier {
  MESH_UFFD_TIER_UNKNOWN = 0, /* not probed yet: the heap has not been worth it */
  MESH_UFFD_TIER_FULL = 1,    /* faults of the kernel wait too; UFFDIO_MOVE */
  MESH_UFFD_TIER_FULL_WP = 2, /* the same with write-protection, for kernels without a sound UFFDIO_MOVE */
  MESH_UFFD_TIER_USER = 3,    /* userfaultfd for user-mode faults only: meshes while the process has one thread */
  MESH_UFFD_TIER_NONE = 4,    /* no userfaultfd: meshes while the process has one thread */
};

/*
 * Figures since the process started. Filled up to `size` bytes, which the caller sets to sizeof(struct
 * mesh_uffd_stats): newer libraries add fields at the end only.
 */
struct mesh_uffd_stats {
  size_t size;               /* in: bytes the caller has room for; out: bytes filled */
  uint32_t tier;             /* enum mesh_uffd_tier */
  uint32_t page_size;        /* bytes */
  uint64_t meshes;           /* units packed into somebody else's packed unit */
  uint64_t meshed_pages;     /* pages now mapped onto somebody else's packed unit */
  uint64_t meshed_pages_hwm; /* highest value of meshed_pages */
  uint64_t freed_bytes;      /* physical memory given back by meshing, ever */
  uint64_t reclaimed_bytes;  /* physical memory given back by dropping empty pages, ever */
  uint64_t passes;           /* runs that were closed and opened again */
  uint64_t pass_ns;          /* time in passes, ns */
  uint64_t longest_pass_ns;  /* longest time one run was closed, ns */
  uint64_t faults;           /* touches of closed memory that were resolved */
  uint64_t longest_fault_ns; /* longest time from reading such an event to waking it, ns */
  uint64_t refused;          /* pages the kernel would not move (pinned, locked, shared with a child), put back */
  uint64_t mappings;         /* mappings that meshing uses now, an upper bound */
  uint64_t live_bytes;       /* bytes in slots and extents that are live or claimed by a thread */
  uint64_t span_bytes;       /* bytes of spans that hold at least one live slot, meshed ones counted once each */
  uint64_t miniheaps;        /* spans in use */
  uint64_t miniheaps_hwm;    /* highest value of miniheaps */
  uint64_t miniheap_allocs;  /* spans ever put to use */
  uint64_t miniheap_frees;   /* spans ever given back */
  uint64_t ops_ring;         /* memory operations carried by io_uring */
  uint64_t ops_vector;       /* ranges carried by process_madvise vectors */
  uint64_t ops_plain;        /* memory operations by plain calls */
  uint64_t packed_bytes;     /* bytes of mesh files in use, an upper bound */
};

/* Fills *stats. Returns 0, or EINVAL when stats is NULL or stats->size is smaller than its first three fields. */
int mesh_uffd_get_stats(struct mesh_uffd_stats *stats);

/*
 * Compacts now: drops empty pages and meshes every span it can, whatever the pacing says, and returns when done.
 * Returns the physical bytes given back by this call, 0 when there was nothing to do or meshing is unavailable or
 * paused.
 */
size_t mesh_uffd_compact(void);

/* True when p points into memory that this allocator manages. */
bool mesh_uffd_is_ours(const void *p);

/* The bytes usable at p, at least what was asked for; 0 for NULL. p must be a live allocation. */
size_t mesh_uffd_usable_size(const void *p);

/*
 * Leaves the object at p alone: its span is not meshed until the object is freed. Returns 0; EINVAL when p is not a
 * live object of ours; EBUSY when its span is meshed already, in which case nothing changes.
 */
int mesh_uffd_exempt(const void *p);

/*
 * Writes the heap profile to a file, in the format of pprof. Returns 0; ENOTSUP when profiling is off (the option
 * MESH_UFFD_PROFILE turns it on); or why the file cannot be written.
 */
int mesh_uffd_profile_write(const char *path);

/* No pass starts between pause and the resume that matches it (they nest); pause waits for one that is under way. */
void mesh_uffd_pause(void);
void mesh_uffd_resume(void);

#ifdef __cplusplus
}
#endif
#endif
