/* SPDX-License-Identifier: Apache-2.0 */
#include "src/headroom.h"
#include "src/cgroup.h"
#include "src/sys.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum { LEVELS = 4 }; /* groups with a limit, from the process's own upwards */

/* Names in the two versions. */
static const struct names {
  const char *controller, *limit, *usage, *inactive, *active;
} names[] = {
    {NULL, "memory.max", "memory.current", "\ninactive_file ", "\nactive_file "},
    {"memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "\ntotal_inactive_file ", "\ntotal_active_file "}};

static struct {
  bool opened;
  unsigned levels;
  const struct names *names;
  struct level {
    int limit, usage, stat;
  } level[LEVELS];
} h;

/* "max" is no number. A limit of more than an exabyte is none (version 1). */
static uint64_t read_number(int fd) {
  char text[32];
  ssize_t n = fd < 0 ? -1 : mu_pread(fd, text, sizeof text - 1, 0);
  text[n > 0 ? n : 0] = 0;
  return text[0] >= '0' && text[0] <= '9' ? strtoull(text, NULL, 10) : UINT64_MAX;
}

static bool is_limit(uint64_t n) {
  return n < (uint64_t)1 << 60;
}

static void close_fd(int fd) {
  if (fd >= 0) mu_close(fd);
}

static void open_level(const struct mu_cgroup *g) {
  struct level l = {.limit = mu_cgroup_open(g, h.names->limit, O_RDONLY)};
  if (l.limit >= 0 && is_limit(read_number(l.limit))) {
    l.usage = mu_cgroup_open(g, h.names->usage, O_RDONLY);
    l.stat = mu_cgroup_open(g, "memory.stat", O_RDONLY);
    h.level[h.levels++] = l;
  } else {
    close_fd(l.limit);
  }
}

static void open_levels(void) {
  struct mu_cgroup g;
  h.opened = true;
  for (unsigned i = 0; i < 2 && !h.levels; i++) {
    h.names = &names[i];
    if (!mu_cgroup_find(&g, h.names->controller, "/proc/thread-self/cgroup", "/proc/thread-self/mountinfo")) continue;
    do open_level(&g);
    while (h.levels < LEVELS && mu_cgroup_up(&g));
  }
}

/* Cached files, which the kernel takes back before it ends anybody. */
static uint64_t cached(const struct level *l) {
  char text[4096];
  ssize_t n = l->stat < 0 ? -1 : mu_pread(l->stat, text, sizeof text - 1, 0);
  uint64_t sum = 0;
  text[n > 0 ? n : 0] = 0;
  for (int i = 0; i < 2; i++) {
    const char *name = i ? h.names->active : h.names->inactive, *at = strstr(text, name);
    if (at) sum += strtoull(at + strlen(name), NULL, 10);
  }
  return sum;
}

static struct mu_headroom of_level(const struct level *l) {
  uint64_t limit = read_number(l->limit), usage = read_number(l->usage);
  struct mu_headroom r = {limit, limit > usage ? limit - usage : 0};
  if (usage != UINT64_MAX && r.room < limit / 4) r.room = mu_min(limit, r.room + cached(l)); /* dear to ask */
  return r;
}

bool mu_headroom_measure(struct mu_headroom *least) {
  if (!h.opened) open_levels();
  *least = (struct mu_headroom){0, UINT64_MAX};
  for (unsigned i = 0; i < h.levels; i++) {
    struct mu_headroom r = of_level(&h.level[i]);
    if (is_limit(r.limit) && r.room < least->room) *least = r;
  }
  return least->limit != 0;
}

void mu_headroom_forget(void) {
  memset(&h, 0, sizeof h);
}
