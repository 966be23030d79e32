/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork of a large heap of which a part was thinned out: what it costs, and what both processes hold together.
 *
 *     fork [-m HEAP_MIB] [-q PERCENT_THINNED] [-n FORKS] [-i IDLE_SECONDS]
 *
 * Prints one "figure KEY=VALUE ..." line: microseconds of fork in the parent (least, median), its mappings, bytes of
 * PSS before, of both processes while a child sits there, and of both once that child has written one object in 64.
 * Every object is read back by each child and, at the end, by the parent.
 */
#define _GNU_SOURCE
#include "arguments.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OBJECT = 512, KEEP_ONE_IN = 20, WRITE_ONE_IN = 64, MAX_FORKS = 100 };

static uint64_t **objects;
static size_t count;
static char text[1 << 16];

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static size_t read_all(int fd, size_t *lines) {
  size_t all = 0;
  ssize_t n;
  while ((n = read(fd, text, sizeof text - 1)) > 0) {
    all += (size_t)n;
    for (ssize_t i = 0; i < n; i++) *lines += text[i] == '\n';
  }
  close(fd);
  return all;
}

static size_t mappings(void) {
  size_t lines = 0;
  int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (fd >= 0) read_all(fd, &lines);
  return lines;
}

static size_t pss(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/smaps_rollup", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  ssize_t n = read(fd, text, sizeof text - 1);
  close(fd);
  text[n > 0 ? n : 0] = 0;
  const char *line = strstr(text, "\nPss:");
  return line ? strtoull(line + 5, NULL, 10) * 1024 : 0;
}

static size_t wrong(void) {
  size_t bad = 0;
  for (size_t i = 0; i < count; i++)
    if (objects[i])
      for (size_t w = 0; w < OBJECT / 8; w++) bad += objects[i][w] != i * 64 + w;
  return bad;
}

static void fill(size_t thinned) {
  uint64_t state = 1;
  for (size_t i = 0; i < count; i++) {
    if (!(objects[i] = malloc(OBJECT))) perror("fork: malloc"), exit(2);
    for (size_t w = 0; w < OBJECT / 8; w++) objects[i][w] = i * 64 + w;
  }
  for (size_t i = 0; i < thinned; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    if ((state >> 33) % KEEP_ONE_IN == 0) continue;
    free(objects[i]);
    objects[i] = NULL;
  }
}

/* Holds still, writes, holds still, reads: at the parent's word each time. */
static void child(int in, int out) {
  char byte = 0;
  if (write(out, &byte, 1) != 1 || read(in, &byte, 1) != 1) _exit(3);
  for (size_t i = 0; i < count; i += WRITE_ONE_IN)
    if (objects[i]) objects[i][0] = i * 64;
  if (write(out, &byte, 1) != 1 || read(in, &byte, 1) != 1) _exit(3);
  _exit(wrong() != 0);
}

static int by_value(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  size_t heap = 1024, percent = 25, forks = 10;
  unsigned idle = 10;
  const struct argument known[] = {NUMBER('m', heap), NUMBER('q', percent), NUMBER('n', forks), NUMBER('i', idle)};
  if (!arguments_read(argc, argv, known, sizeof known / sizeof *known)) return 2;
  if (!heap || percent > 100 || !forks || forks > MAX_FORKS) return 2;
  count = (heap << 20) / OBJECT;
  objects =
      mmap(NULL, count * sizeof *objects, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (objects == MAP_FAILED) return perror("fork: mmap"), 2;
  fill(count * percent / 100);
  size_t (*compact)(void);
  *(void **)&compact = dlsym(RTLD_DEFAULT, "mesh_uffd_compact");
  if (compact) compact();
  sleep(idle);
  uint64_t took[MAX_FORKS];
  for (size_t i = 0; i < forks; i++) {
    uint64_t began = now();
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    if (pid < 0) return perror("fork"), 2;
    took[i] = now() - began;
    waitpid(pid, NULL, 0);
  }
  qsort(took, forks, sizeof *took, by_value);
  int to[2], from[2], status = 1;
  char byte = 0;
  size_t maps = mappings(), before = pss(getpid());
  if (pipe(to) || pipe(from)) return 2;
  pid_t pid = fork();
  if (pid == 0) child(to[0], from[1]);
  if (pid < 0 || read(from[0], &byte, 1) != 1) return 2;
  size_t both = pss(getpid()) + pss(pid);
  if (write(to[1], &byte, 1) != 1 || read(from[0], &byte, 1) != 1) return 2;
  size_t written = pss(getpid()) + pss(pid);
  if (write(to[1], &byte, 1) != 1) return 2;
  waitpid(pid, &status, 0);
  size_t bad = wrong();
  printf("figure least_us=%lu median_us=%lu mappings=%zu before=%zu both=%zu written=%zu wrong=%zu child=%d\n",
         took[0] / 1000, took[forks / 2] / 1000, maps, before, both, written, bad, status);
  return bad || status;
}
