/* SPDX-License-Identifier: Apache-2.0 */
/* A process that is looked at: its statistics page, its memory, what /proc says of it. It is neither stopped nor
 * asked. */
#ifndef CMD_TARGET_H
#define CMD_TARGET_H

#include "cmd/cmd.h"
#include <mesh-uffd-stats-page.h>

enum found {
  FOUND,
  GONE,          /* no such process, or it has ended */
  FORBIDDEN,     /* to read its memory */
  NOT_OURS,      /* nothing in it is mesh-uffd */
  NOTHING_YET,   /* the library is there, and has not written its page */
  OTHER_VERSION, /* of the page */
  UNREADABLE,    /* it is always being written, or cannot be read */
};

struct target {
  int pid, pidfd;
  uint64_t address;  /* of the page; 0: not found */
  char object[4096]; /* that holds the library, as it was mapped */
  char name[64];
  struct mesh_uffd_stats_page page;
};

/* What is known without the page, from /proc. 0: not known. */
struct memory {
  uint64_t rss, pss, swap, tables;
  uint64_t shared_rss, shared_pss; /* of files in memory: mesh files, mostly */
  uint64_t mappings;               /* only where asked for: it takes long */
};

/* Finds the page and reads it. The rest of *t is good as far as the result goes. */
enum found target_open(struct target *t, int pid);
void target_close(struct target *t);
/* Reads it anew. */
enum found target_read(struct target *t);
/* Exactly `length` bytes of its memory. */
bool target_copy(const struct target *t, void *to, uint64_t from, size_t length);
/* Where it is mapped, line by line of /proc/PID/maps, is read for the page alone. */
bool target_alive(const struct target *t);

enum status status_of(enum found found);
/* Says on standard error why there are no figures. */
void complain_of(const struct target *t, enum found found);
/* target_open, or ends the program. */
void target_open_or_die(struct target *t, int pid);

struct memory memory_of(int pid, bool count_mappings);
/* PSS, swap and page tables: what the process costs. RSS where PSS is not known. */
uint64_t memory_sum(const struct memory *m);
/* What meshed pages save at this moment: mapped more than once, there once. */
uint64_t memory_saved(const struct memory *m);
uint64_t max_mappings(void);

const char *tier_name(uint32_t tier);
/* The latency that `share` of the faults stay under, ns; 0 without faults. */
uint64_t latency_quantile(const struct mesh_uffd_stats_page *p, double share);
/* Free bytes in spans of the class that hold live objects. */
uint64_t class_free_bytes(const struct mesh_uffd_class_stats *c);

#endif
