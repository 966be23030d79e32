/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The statistics page: the figures of a process that runs under mesh-uffd, at a fixed layout in its memory, for others
 * to read without stopping it (process_vm_readv, a debugger, a core file).
 *
 * To find it: in the program headers of the mapped object that holds the library (libmesh-uffd.so, or a program that is
 * linked with it) there is a note (PT_NOTE) of owner "mesh-uffd" and type MESH_UFFD_STATS_NOTE. Its contents are one
 * signed 64-bit number: the address of the page minus the address of that number.
 *
 * To read it: `sequence` is 0 until the page is first written, which is when the heap first reaches some megabytes;
 * odd while it is being written; greater after each writing. Read `sequence`, the page, and `sequence` again; what was
 * read is good if both are the same, even, and not 0. Check magic and version before anything else. It is written about
 * every 100 ms while the program allocates, and not at all while it does not. In a forked child it is the child's own.
 *
 * Within one version nothing moves: fields that come later take the place of reserved ones, or go behind the end, so
 * read min(size, sizeof(struct mesh_uffd_stats_page)) bytes.
 */
#ifndef MESH_UFFD_STATS_PAGE_H
#define MESH_UFFD_STATS_PAGE_H

#include <mesh-uffd.h>

#define MESH_UFFD_STATS_NOTE    1
#define MESH_UFFD_STATS_OWNER   "mesh-uffd"
#define MESH_UFFD_STATS_MAGIC   "meshstat"
#define MESH_UFFD_STATS_VERSION 1

enum { MESH_UFFD_STATS_LATENCIES = 64, MESH_UFFD_STATS_CLASSES = 48, MESH_UFFD_STATS_SAMPLES = 64 };

/* One size class. */
struct mesh_uffd_class_stats {
  uint32_t size;         /* bytes of an object; 0: no such class */
  uint32_t span_pages;   /* pages of a span */
  uint32_t slots;        /* objects that a span has room for */
  uint32_t meshed_runs;  /* runs (64 pages) of which something is meshed */
  uint64_t spans;        /* that hold a live object */
  uint64_t live_slots;   /* live, or claimed by a thread */
  uint64_t meshed_slots; /* of these, in meshed spans */
  uint64_t runs;         /* in use */
};

/* The heap at one time. */
struct mesh_uffd_sample {
  uint64_t time_ns;      /* CLOCK_MONOTONIC */
  uint64_t live_bytes;   /* as in the totals */
  uint64_t span_bytes;   /* as in the totals */
  uint64_t unused_bytes; /* free memory that may not have gone back yet */
  uint64_t packed_bytes; /* as in the totals */
  uint64_t meshed_pages; /* as in the totals */
  uint64_t freed_bytes;  /* as in the totals */
  uint64_t passes;       /* as in the totals */
};

struct mesh_uffd_stats_page {
  char magic[8];                                     /* MESH_UFFD_STATS_MAGIC */
  uint32_t version;                                  /* MESH_UFFD_STATS_VERSION */
  uint32_t size;                                     /* bytes of the page in this library */
  uint32_t sequence;                                 /* see above */
  uint32_t pid;                                      /* of the writer, as it sees itself */
  uint64_t started_ns;                               /* CLOCK_MONOTONIC of the first writing */
  uint64_t updated_ns;                               /* CLOCK_MONOTONIC of this one */
  uint32_t mesher;                                   /* 1: the background thread runs */
  uint32_t meshing;                                  /* 0: meshing is turned off or paused */
  uint32_t forks;                                    /* since the process, or one it was forked from, began */
  uint32_t library;                                  /* major << 16 | minor << 8 | patch */
  uint64_t mapping_budget;                           /* mappings that meshing may use; 0: not known yet */
  uint64_t unused_bytes;                             /* free memory that may not have gone back yet */
  uint64_t large_bytes;                              /* in objects too large for a size class */
  uint64_t refused_busy;                             /* units that were touched while they were closed */
  uint64_t refused_exempt;                           /* units with an exempt object or unfit for this tier */
  uint64_t refused_overlap;                          /* units that no longer fitted their target */
  uint64_t refused_shared;                           /* units of which the kernel refused a page */
  uint64_t refused_mappings;                         /* units that could not be mapped */
  uint64_t heap_base;                                /* private: for the tools of the same version */
  uint64_t heap_pages;                               /* private */
  uint64_t heap_runs;                                /* private */
  uint64_t heap_extents;                             /* private */
  uint64_t heap_layout;                              /* private */
  uint64_t reserved[27];                             /* 0 */
  char tier_reason[256];                             /* one line: why it is this tier */
  uint64_t fault_latency[MESH_UFFD_STATS_LATENCIES]; /* [i]: faults that took 2^i to 2^(i+1)-1 ns */
  uint32_t classes;                                  /* rows in use */
  uint32_t samples;                                  /* in use, oldest first */
  uint64_t sample_interval_ns;                       /* doubled, and every second one dropped, when all are used */
  struct mesh_uffd_class_stats class_rows[MESH_UFFD_STATS_CLASSES];
  struct mesh_uffd_sample sample_rows[MESH_UFFD_STATS_SAMPLES];
  struct mesh_uffd_stats totals; /* the last: it may grow; totals.size says how long it is */
};

#endif
