/* SPDX-License-Identifier: Apache-2.0 */
#include "src/numa.h"
#include "src/arena.h"
#include "src/options.h"
#include "src/sys.h"
#include <linux/mempolicy.h>
#include <string.h>

enum { MOST_NODES = 64 };

/* The last number of a list like "0" or "0-1,4". */
static unsigned highest(const char *list) {
  unsigned last = 0, n = 0;
  for (; *list; list++) {
    n = *list >= '0' && *list <= '9' ? n * 10 + (unsigned)(*list - '0') : 0;
    if (n) last = n;
  }
  return last;
}

unsigned mu_numa_nodes(void) {
  static unsigned known;
  char text[256];
  if (mu_options.nodes) return mu_options.nodes;
  if (!known && mu_read_file("/sys/devices/system/node/has_memory", text, sizeof text) > 0)
    known = (unsigned)mu_min(highest(text) + 1, MOST_NODES);
  if (!known) known = 1;
  return known;
}

/* Made up for tests: one run after the other. */
static unsigned made_up(uint32_t run) {
  return run % mu_options.nodes;
}

unsigned mu_numa_node_of(uint32_t run, uint64_t pages) {
  void *page[MU_RUN_PAGES];
  int node[MU_RUN_PAGES];
  unsigned n = 0, found = MU_NODE_UNKNOWN;
  if (mu_options.nodes) return made_up(run);
  for (; pages; pages &= pages - 1)
    page[n++] = mu_page_address((size_t)run * MU_RUN_PAGES + (unsigned)__builtin_ctzll(pages));
  /* Without nodes to move to it tells where each page is. */
  if (!n || mu_sys_call(MU_SYS_move_pages, 0, n, (long)page, 0, (long)node, 0) < 0) return MU_NODE_UNKNOWN;
  for (unsigned i = 0; i < n; i++) {
    if (node[i] < 0) continue; /* gone meanwhile */
    if (found != MU_NODE_UNKNOWN && found != (unsigned)node[i]) return MU_NODE_MIXED;
    found = (unsigned)node[i];
  }
  return found;
}

void mu_numa_prefer(void *window, size_t bytes, unsigned node) {
  unsigned long mask = node < MOST_NODES ? 1UL << node : 0;
  if (!mask || mu_options.nodes) return;
  mu_sys_call(MU_SYS_mbind, (long)window, (long)bytes, MPOL_PREFERRED, (long)&mask, MOST_NODES + 1, 0);
}
