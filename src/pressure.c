/* SPDX-License-Identifier: Apache-2.0 */
#include "src/pressure.h"
#include "src/cgroup.h"
#include "src/sys.h"
#include "uffd/engine.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum {
  GROUP,
  MACHINE,
  SOURCES,
  SHARE = 20, /* a twentieth of the time is pressure */
};

/* The same share in two seconds, the shortest window that the kernel lets everybody have. */
static const char trigger[] = "some 100000 2000000";

static struct {
  bool opened, watched;
  struct source {
    int fd;         /* -1: none */
    bool writable;  /* triggers can be set */
    uint64_t total; /* us that some task waited */
  } sources[SOURCES];
  uint64_t looked; /* ns */
} p;

static int open_group(int flags) {
  struct mu_cgroup g;
  int fd = -ENOENT;
  if (!mu_cgroup_find(&g, NULL, "/proc/thread-self/cgroup", "/proc/thread-self/mountinfo")) return fd;
  do fd = mu_cgroup_open(&g, "memory.pressure", flags);
  while (fd == -ENOENT && mu_cgroup_up(&g));
  return fd;
}

static int open_machine(int flags) {
  return mu_open("/proc/pressure/memory", flags | O_CLOEXEC);
}

static void open_source(struct source *s, int (*open_it)(int flags)) {
  s->fd = open_it(O_RDWR | O_NONBLOCK);
  s->writable = s->fd >= 0;
  if (s->fd < 0) s->fd = open_it(O_RDONLY);
  if (s->fd < 0) s->fd = -1;
}

/* "some avg10=0.00 avg60=0.00 avg300=0.00 total=N" comes first. */
static bool read_total(struct source *s, uint64_t *total) {
  char text[256];
  ssize_t n = s->fd < 0 ? -1 : mu_pread(s->fd, text, sizeof text - 1, 0);
  text[n > 0 ? n : 0] = 0;
  const char *at = strstr(text, "total=");
  if (at) *total = strtoull(at + 6, NULL, 10);
  return at != NULL;
}

/* A file that cannot be read, as where the kernel was started without, is closed again. */
static void open_sources(uint64_t now) {
  open_source(&p.sources[GROUP], open_group);
  open_source(&p.sources[MACHINE], open_machine);
  for (int i = 0; i < SOURCES; i++)
    if (p.sources[i].fd >= 0 && !read_total(&p.sources[i], &p.sources[i].total)) {
      mu_close(p.sources[i].fd);
      p.sources[i].fd = -1;
    }
  p.opened = true;
  p.looked = now;
}

bool mu_pressure_felt(uint64_t now) {
  bool felt = false;
  if (!p.opened) open_sources(now);
  for (int i = 0; i < SOURCES; i++) {
    struct source *s = &p.sources[i];
    uint64_t total;
    if (!read_total(s, &total)) continue;
    felt |= (total - s->total) * 1000 > (now - p.looked) / SHARE;
    s->total = total;
  }
  p.looked = now;
  return felt;
}

void mu_pressure_watch(void (*rung)(void)) {
  if (!p.opened || p.watched) return;
  for (int i = 0; i < SOURCES; i++) {
    const struct source *s = &p.sources[i];
    if (s->fd >= 0 && s->writable && mu_write(s->fd, trigger, sizeof trigger) > 0) mu_engine_watch(s->fd, rung);
  }
  p.watched = true;
}

void mu_pressure_forget(void) {
  memset(&p, 0, sizeof p);
}
