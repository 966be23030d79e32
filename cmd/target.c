/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/target.h"
#include <elf.h>
#include <errno.h>
#include <link.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MAX_NOTES = 65536, MAX_HEADERS = 64, TRIES = 200 };

static bool copy(int pid, void *to, uint64_t from, size_t length) {
  struct iovec local = {to, length}, remote = {(void *)(uintptr_t)from, length};
  ssize_t n = process_vm_readv(pid, &local, 1, &remote, 1, 0);
  if (n >= 0 && (size_t)n != length) errno = EFAULT;
  return n == (ssize_t)length;
}

bool target_copy(const struct target *t, void *to, uint64_t from, size_t length) {
  return copy(t->pid, to, from, length);
}

bool target_alive(const struct target *t) {
  struct pollfd p = {.fd = t->pidfd, .events = POLLIN};
  if (t->pidfd < 0) return kill(t->pid, 0) == 0 || errno == EPERM;
  return poll(&p, 1, 0) == 0;
}

/* ---- finding the page ----------------------------------------------------------------------------------------------
 */

/* Whether the note at `at` of the buffer is ours; *next is where the one behind it begins. */
static bool is_our_note(const char *buffer, size_t length, size_t at, size_t *contents, size_t *next) {
  ElfW(Nhdr) note;
  memcpy(&note, buffer + at, sizeof note);
  size_t name = at + sizeof note;
  if (note.n_namesz > length || note.n_descsz > length) {
    *next = length;
    return false;
  }
  *contents = name + (((size_t)note.n_namesz + 3) & ~(size_t)3);
  *next = *contents + (((size_t)note.n_descsz + 3) & ~(size_t)3);
  return *next <= length && note.n_type == MESH_UFFD_STATS_NOTE && note.n_descsz == 8 &&
         note.n_namesz == sizeof MESH_UFFD_STATS_OWNER &&
         memcmp(buffer + name, MESH_UFFD_STATS_OWNER, sizeof MESH_UFFD_STATS_OWNER) == 0;
}

static uint64_t page_of_notes(const struct target *t, uint64_t notes, size_t length) {
  uint64_t address = 0;
  if (length > MAX_NOTES) return 0;
  char *buffer = malloc(length);
  if (buffer && target_copy(t, buffer, notes, length)) {
    size_t at = 0, contents, next;
    for (; !address && at + sizeof(ElfW(Nhdr)) <= length; at = next) {
      int64_t distance;
      if (!is_our_note(buffer, length, at, &contents, &next)) continue;
      memcpy(&distance, buffer + contents, sizeof distance);
      address = notes + contents + (uint64_t)distance;
    }
  }
  free(buffer);
  return address;
}

/* The object whose first bytes are mapped at `start`. */
static uint64_t page_of_object(const struct target *t, uint64_t start) {
  ElfW(Ehdr) head;
  ElfW(Phdr) program[MAX_HEADERS];
  uint64_t bias = 0, address = 0;
  if (!target_copy(t, &head, start, sizeof head) || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0) return 0;
  if (head.e_ident[EI_CLASS] != ELFCLASS64 || head.e_phentsize != sizeof *program || head.e_phnum > MAX_HEADERS)
    return 0;
  if (!target_copy(t, program, start + head.e_phoff, head.e_phnum * sizeof *program)) return 0;
  for (unsigned i = 0; i < head.e_phnum; i++)
    if (program[i].p_type == PT_LOAD && program[i].p_offset == 0) bias = start - program[i].p_vaddr;
  for (unsigned i = 0; i < head.e_phnum && !address; i++)
    if (program[i].p_type == PT_NOTE) address = page_of_notes(t, bias + program[i].p_vaddr, program[i].p_memsz);
  return address;
}

/* Only the starts of files on disk are of interest: a meshed heap is tens of thousands of mappings. */
static bool is_object_start(const char *line, uint64_t *start, const char **path) {
  uint64_t end, offset;
  char allowed[8];
  int at = 0;
  if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %n", start, &end, allowed, &offset, &at) < 4 || !at) return false;
  *path = line + at;
  return offset == 0 && allowed[0] == 'r' && **path == '/' && strncmp(*path, "/memfd:", 7) != 0 &&
         strncmp(*path, "/dev/", 5) != 0;
}

static enum found find_page(struct target *t) {
  char path[64], *line = NULL;
  const char *object;
  size_t room = 0, lines = 0;
  uint64_t start;
  snprintf(path, sizeof path, "/proc/%d/maps", t->pid);
  FILE *maps = fopen(path, "re");
  if (!maps) return errno == EACCES || errno == EPERM ? FORBIDDEN : GONE;
  errno = 0;
  while (!t->address && getline(&line, &room, maps) > 0) {
    lines++;
    if (!is_object_start(line, &start, &object)) continue;
    t->address = page_of_object(t, start);
    if (!t->address && errno == EPERM) break;
    if (t->address) snprintf(t->object, sizeof t->object, "%.*s", (int)strcspn(object, "\n"), object);
  }
  int error = errno;
  free(line);
  fclose(maps);
  if (t->address) return FOUND;
  if (error == EPERM || error == EACCES) return FORBIDDEN;
  return error == ESRCH || !target_alive(t) || !lines ? GONE : NOT_OURS;
}

/* ---- reading it ----------------------------------------------------------------------------------------------------
 */

static bool sequence_of(const struct target *t, uint32_t *sequence) {
  return target_copy(t, sequence, t->address + offsetof(struct mesh_uffd_stats_page, sequence), sizeof *sequence);
}

static enum found why_unread(const struct target *t, int error) {
  if (error == ESRCH || !target_alive(t)) return GONE;
  return error == EPERM ? FORBIDDEN : UNREADABLE;
}

static bool copy_page(const struct target *t, struct mesh_uffd_stats_page *p) {
  enum { HEAD = offsetof(struct mesh_uffd_stats_page, sequence) };
  memset(p, 0, sizeof *p);
  if (!target_copy(t, p, t->address, HEAD)) return false;
  size_t length = p->size < sizeof *p ? p->size : sizeof *p;
  return length < HEAD || target_copy(t, p, t->address, length);
}

enum found target_read(struct target *t) {
  for (int i = 0; i < TRIES; i++, sleep_ms(i > TRIES / 2)) {
    uint32_t before, after;
    if (!sequence_of(t, &before)) return why_unread(t, errno);
    if (before == 0) return target_alive(t) ? NOTHING_YET : GONE;
    if (before & 1) continue;
    if (!copy_page(t, &t->page) || !sequence_of(t, &after)) return why_unread(t, errno);
    if (after != before) continue;
    if (memcmp(t->page.magic, MESH_UFFD_STATS_MAGIC, sizeof t->page.magic) != 0) return NOT_OURS;
    return t->page.version == MESH_UFFD_STATS_VERSION ? FOUND : OTHER_VERSION;
  }
  return target_alive(t) ? UNREADABLE : GONE;
}

static void find_name(struct target *t) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/comm", t->pid);
  char *text = read_file(path, NULL);
  snprintf(t->name, sizeof t->name, "%.*s", text ? (int)strcspn(text, "\n") : 1, text ? text : "?");
  for (char *c = t->name; *c; c++)
    if ((unsigned char)*c < ' ' || *c == 127) *c = '?'; /* a name is shown on terminals */
  free(text);
}

enum found target_open(struct target *t, int pid) {
  *t = (struct target){.pid = pid};
  t->pidfd = (int)syscall(SYS_pidfd_open, pid, 0); /* -1 where there is none: Linux 5.2 and before */
  if (t->pidfd < 0 && errno == ESRCH) return GONE;
  find_name(t);
  enum found found = find_page(t);
  return found == FOUND ? target_read(t) : found;
}

void target_close(struct target *t) {
  if (t->pidfd >= 0) close(t->pidfd);
  t->pidfd = -1;
}

enum status status_of(enum found found) {
  switch (found) {
  case FOUND:
    return DONE;
  case GONE:
    return NO_PROCESS;
  case FORBIDDEN:
    return NOT_ALLOWED;
  case NOT_OURS:
  case NOTHING_YET:
    return NO_FIGURES;
  default:
    return FAILED;
  }
}

void complain_of(const struct target *t, enum found found) {
  switch (found) {
  case FOUND:
    break;
  case GONE:
    complain("there is no process %d", t->pid);
    break;
  case FORBIDDEN:
    complain("process %d (%s) may not be read: it is another user's, or guarded; %s "
             "/proc/sys/kernel/yama/ptrace_scope",
             t->pid, t->name, geteuid() ? "try as root, or see" : "this root lacks CAP_SYS_PTRACE over it, or see");
    break;
  case NOT_OURS:
    complain("process %d (%s) does not run under mesh-uffd; 'mesh-uffd run' starts programs that do", t->pid, t->name);
    break;
  case NOTHING_YET:
    complain("process %d (%s) has no figures yet: its heap is smaller than 8 MiB", t->pid, t->name);
    break;
  case OTHER_VERSION:
    complain("process %d (%s) has a library of another version (statistics page %u, this command reads %u)", t->pid,
             t->name, t->page.version, MESH_UFFD_STATS_VERSION);
    break;
  case UNREADABLE:
    complain("the statistics of process %d (%s) cannot be read: it is stopped, or busy", t->pid, t->name);
    break;
  }
}

void target_open_or_die(struct target *t, int pid) {
  enum found found = target_open(t, pid);
  if (found == FOUND) return;
  complain_of(t, found);
  exit((int)status_of(found));
}

/* ---- /proc ---------------------------------------------------------------------------------------------------------
 */

static uint64_t kilobytes(const char *text, const char *name) {
  uint64_t kb = 0;
  return text && find_number(text, name, 10, &kb) ? kb << 10 : 0;
}

static uint64_t count_lines(const char *path) {
  static char buffer[65536];
  uint64_t lines = 0;
  size_t n;
  FILE *f = fopen(path, "re");
  if (!f) return 0;
  while ((n = fread(buffer, 1, sizeof buffer, f)) > 0)
    for (size_t i = 0; i < n; i++) lines += buffer[i] == '\n';
  fclose(f);
  return lines;
}

struct memory memory_of(int pid, bool count_mappings) {
  char path[64];
  struct memory m = {0};
  snprintf(path, sizeof path, "/proc/%d/status", pid);
  char *status = read_file(path, NULL);
  m.rss = kilobytes(status, "VmRSS:");
  m.tables = kilobytes(status, "VmPTE:");
  m.shared_rss = kilobytes(status, "RssShmem:");
  free(status);
  snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
  char *rollup = read_file(path, NULL);
  m.pss = kilobytes(rollup, "Pss:");
  m.swap = kilobytes(rollup, "SwapPss:");
  m.shared_pss = kilobytes(rollup, "Pss_Shmem:");
  if (!rollup || !strstr(rollup, "Pss_Shmem:")) m.shared_pss = m.shared_rss;
  free(rollup);
  snprintf(path, sizeof path, "/proc/%d/maps", pid);
  if (count_mappings) m.mappings = count_lines(path);
  return m;
}

uint64_t memory_sum(const struct memory *m) {
  return (m->pss ? m->pss + m->swap : m->rss) + m->tables;
}

uint64_t memory_saved(const struct memory *m) {
  return m->shared_rss > m->shared_pss ? m->shared_rss - m->shared_pss : 0;
}

uint64_t max_mappings(void) {
  char *text = read_file("/proc/sys/vm/max_map_count", NULL);
  uint64_t n = text ? strtoull(text, NULL, 10) : 0;
  free(text);
  return n;
}

/* ---- figures -------------------------------------------------------------------------------------------------------
 */

const char *tier_name(uint32_t tier) {
  static const char *const names[] = {"unknown", "full", "full, write-protect", "user-only", "none"};
  return names[tier < sizeof names / sizeof *names ? tier : 0];
}

uint64_t latency_quantile(const struct mesh_uffd_stats_page *p, double share) {
  uint64_t all = 0, seen = 0;
  for (unsigned i = 0; i < MESH_UFFD_STATS_LATENCIES; i++) all += p->fault_latency[i];
  if (!all) return 0;
  for (unsigned i = 0; i < MESH_UFFD_STATS_LATENCIES - 1; i++)
    if ((double)(seen += p->fault_latency[i]) >= share * (double)all) return (uint64_t)2 << i;
  return UINT64_MAX;
}

uint64_t class_free_bytes(const struct mesh_uffd_class_stats *c) {
  uint64_t room = c->spans * c->slots;
  return room > c->live_slots ? (room - c->live_slots) * c->size : 0;
}
