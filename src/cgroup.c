/* SPDX-License-Identifier: Apache-2.0 */
#include "src/cgroup.h"
#include "src/log.h"
#include "src/sys.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>

/* ---- lines of a file, whatever its length ---- */

struct lines {
  int fd;
  size_t have, at;
  char buf[4096];
};

/* The next line, without its end; NULL after the last. What is longer than the buffer is skipped. */
static char *next_line(struct lines *l) {
  for (;;) {
    char *line = l->buf + l->at, *end = memchr(line, '\n', l->have - l->at);
    if (end) {
      *end = 0;
      l->at = (size_t)(end + 1 - l->buf);
      return line;
    }
    if (l->at == 0 && l->have == sizeof l->buf) l->have = 0;
    memmove(l->buf, line, l->have - l->at);
    l->have -= l->at;
    l->at = 0;
    ssize_t n = mu_read(l->fd, l->buf + l->have, sizeof l->buf - l->have);
    if (n <= 0) return NULL;
    l->have += (size_t)n;
  }
}

/* ---- words ---- */

/* Ends the word at `at` with a zero and returns what follows it; NULL when that is nothing. */
static char *after_word(char *at, char separator) {
  char *end = at ? strchr(at, separator) : NULL;
  if (!end) return NULL;
  *end = 0;
  return end + 1;
}

static bool listed(const char *list, const char *word) {
  size_t len = strlen(word);
  for (const char *at = list; (at = strstr(at, word)); at += len)
    if ((at == list || at[-1] == ',') && (at[len] == 0 || at[len] == ',')) return true;
  return false;
}

static unsigned octal(const char *digits) {
  unsigned v = 0;
  for (int i = 0; i < 3; i++) {
    if (digits[i] < '0' || digits[i] > '7') return 0;
    v = v * 8 + (unsigned)(digits[i] - '0');
  }
  return v;
}

/* The kernel writes blanks and the like in paths as a backslash and three digits. */
static void unescape(char *text) {
  char *to = text;
  for (; *text; to++) {
    unsigned v = *text == '\\' ? octal(text + 1) : 0;
    *to = v ? (char)v : *text;
    text += v ? 4 : 1;
  }
  *to = 0;
}

/* ---- the group ---- */

/* "4:memory:/path", or "0::/path" of version 2. */
static char *place_in(char *line, const char *controller) {
  char *controllers = after_word(line, ':'), *path = after_word(controllers, ':');
  if (!path || *path != '/') return NULL;
  if (!controller) return strcmp(line, "0") == 0 && !*controllers ? path : NULL;
  return listed(controllers, controller) ? path : NULL;
}

static bool read_place(char *place, size_t room, const char *controller, const char *groups) {
  struct lines l = {.fd = mu_open(groups, O_RDONLY | O_CLOEXEC)};
  char *line, *path = NULL;
  if (l.fd < 0) return false;
  while (!path && (line = next_line(&l))) path = place_in(line, controller);
  bool fits = path && strlen(path) < room;
  if (fits) memcpy(place, path, strlen(path) + 1);
  mu_close(l.fd);
  return fits;
}

/* The part of `place` below `root`; NULL when it is not there. */
static const char *below(const char *place, const char *root) {
  size_t len = strlen(root);
  if (strcmp(root, "/") == 0) return place;
  if (strncmp(place, root, len) != 0 || (place[len] && place[len] != '/')) return NULL;
  return place + len;
}

/* "36 35 0:28 ROOT POINT options [more] - TYPE source OPTIONS": the group, if this is a mount of the hierarchy. */
static bool from_mount(struct mu_cgroup *g, char *line, const char *controller, const char *place) {
  char *rest = strstr(line, " - "), *at = line, *root, *point, *type, *source, *options;
  if (!rest) return false;
  *rest = 0;
  type = rest + 3;
  source = after_word(type, ' ');
  options = after_word(source, ' ');
  for (int i = 0; i < 3; i++) at = after_word(at, ' ');
  root = at;
  point = after_word(root, ' ');
  after_word(point, ' ');
  if (!point || strcmp(type, controller ? "cgroup" : "cgroup2") != 0) return false;
  if (controller && (!options || !listed(options, controller))) return false;
  unescape(root);
  unescape(point);
  const char *path = below(place, root);
  g->top = strlen(point);
  /* Mounted from further up or aside: only what is at the mount point itself can be told. */
  if (!path || strcmp(path, "/") == 0) path = "";
  if (g->top + strlen(path) >= sizeof g->path) return false;
  mu_format(g->path, sizeof g->path, "%s%s", point, path);
  return true;
}

bool mu_cgroup_find(struct mu_cgroup *g, const char *controller, const char *groups, const char *mounts) {
  char place[MU_CGROUP_PATH], *line;
  struct lines l;
  bool found = false;
  if (!read_place(place, sizeof place, controller, groups)) return false;
  l.fd = mu_open(mounts, O_RDONLY | O_CLOEXEC);
  if (l.fd < 0) return false;
  l.have = l.at = 0;
  while (!found && (line = next_line(&l))) found = from_mount(g, line, controller, place);
  mu_close(l.fd);
  return found;
}

bool mu_cgroup_up(struct mu_cgroup *g) {
  char *slash = strrchr(g->path, '/');
  if (!slash || (size_t)(slash - g->path) < g->top) return false;
  *slash = 0;
  return true;
}

int mu_cgroup_open(const struct mu_cgroup *g, const char *name, int flags) {
  char path[MU_CGROUP_PATH + 64];
  mu_format(path, sizeof path, "%s/%s", g->path, name);
  return mu_open(path, flags | O_CLOEXEC);
}
