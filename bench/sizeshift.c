/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes that change: fills a budget with blocks of one size, frees 90 % of all blocks at random, is quiet for a while,
 * fills up again with blocks of the next size, and so on. What is left of each size stands in the way of the others.
 *
 *     sizeshift [-a] [-b BUDGET_MIB] [-q QUIET_SECONDS] [-s SEED] [-t THREADS] SIZE...
 *
 * With several threads each frees what another has allocated. All threads wait at quiet points; none ends before the
 * program does. Prints "mark NAME key=value ..." lines as scattered.c does; -a waits for a byte after each. Every block
 * is read back before it is freed, and all that are left at the end.
 */
#define _GNU_SOURCE
#include "arguments.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { THREADS_MAX = 64, SIZE_MIN = 16, KEEP_ONE_IN = 10 };

struct block {
  uint64_t *words;
  uint32_t size;
  uint32_t id;
};

struct table {
  struct block *blocks;
  size_t count, live;
  uint32_t next_id;
};

static char text[16384];
static int acknowledged;
static unsigned threads = 1, quiet = 5, rounds;
static uint64_t seed = 1;
static size_t budget = 96, capacity, sizes[64];
static struct table tables[THREADS_MAX];
static pthread_barrier_t barrier;
static _Atomic uint32_t wrong;

static uint64_t rng(uint64_t *state) { /* splitmix64 */
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static uint64_t word(uint32_t id, uint32_t index) {
  return (id + 1) * 0x9e3779b97f4a7c15u ^ index;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* The value in bytes of a "Name:   123 kB" line of a file of /proc; 0 when there is none. */
static size_t field(const char *path, const char *name) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  size_t length = 0;
  ssize_t got;
  while (length < sizeof text - 1 && (got = read(fd, text + length, sizeof text - 1 - length)) > 0)
    length += (size_t)got;
  close(fd);
  text[length] = 0;
  const char *line = strstr(text, name);
  if (!line) return 0;
  size_t value = 0;
  for (line += strlen(name); *line && *line != '\n'; line++)
    if (*line >= '0' && *line <= '9') value = value * 10 + (size_t)(*line - '0');
  return value * 1024;
}

static void mark(const char *name, unsigned round, double seconds) {
  char line[256]; /* write, not printf: stdio's buffer would come from malloc */
  size_t live = 0, pss = field("/proc/self/smaps_rollup", "\nPss:"), pte = field("/proc/self/status", "\nVmPTE:");
  for (unsigned i = 0; i < threads; i++) live += tables[i].live;
  int length = snprintf(line, sizeof line, "mark %s%u size=%zu live=%zu pss=%zu pte=%zu seconds=%.3f\n", name, round,
                        round ? sizes[round - 1] : 0, live, pss, pte, seconds);
  if (write(STDOUT_FILENO, line, (size_t)length) != length) _exit(3);
  if (acknowledged && read(STDIN_FILENO, line, 1) != 1) _exit(3);
}

static void wait_for_all(void) {
  if (threads > 1) pthread_barrier_wait(&barrier);
}

static void check(const struct block *b) {
  for (uint32_t w = 0; w < b->size / 8; w++)
    if (b->words[w] != word(b->id, w)) {
      atomic_fetch_add(&wrong, 1);
      return;
    }
}

static void fill(struct table *t, size_t size) {
  while (t->live + size <= budget / threads && t->count < capacity) {
    struct block *b = &t->blocks[t->count++];
    b->size = (uint32_t)size;
    b->id = t->next_id++;
    b->words = malloc(size);
    if (!b->words) perror("sizeshift: malloc"), _exit(2);
    for (uint32_t w = 0; w < size / 8; w++) b->words[w] = word(b->id, w);
    t->live += size;
  }
}

static void thin(struct table *t, uint64_t *state) {
  size_t kept = 0;
  for (size_t i = 0; i < t->count; i++) {
    struct block *b = &t->blocks[i];
    if (rng(state) % KEEP_ONE_IN == 0) {
      t->blocks[kept++] = *b;
      continue;
    }
    check(b);
    t->live -= b->size;
    free(b->words);
  }
  t->count = kept;
}

static void work(unsigned self) {
  uint64_t state = seed * 1000 + self;
  double began = now();
  for (unsigned r = 0; r < rounds; r++) {
    fill(&tables[(self + r) % threads], sizes[r]);
    wait_for_all();
    if (self == 0) mark("full", r + 1, now() - began);
    wait_for_all();
    began = now();
    thin(&tables[(self + r + 1) % threads], &state);
    wait_for_all();
    if (self == 0) {
      mark("freed", r + 1, now() - began);
      struct timespec rest = {.tv_sec = quiet};
      while (nanosleep(&rest, &rest)) continue;
      mark("quiet", r + 1, (double)quiet);
    }
    wait_for_all();
    began = now();
  }
}

static void *thread(void *argument) {
  work((unsigned)(uintptr_t)argument);
  wait_for_all(); /* stays until the program ends */
  return NULL;
}

int main(int argc, char **argv) {
  const struct argument known[] = {FLAG('a', acknowledged), NUMBER('b', budget), NUMBER('q', quiet), NUMBER('s', seed),
                                   NUMBER('t', threads)};
  if (!arguments_read(argc, argv, known, sizeof known / sizeof *known)) return 2;
  size_t smallest = SIZE_MAX;
  for (; optind < argc && rounds < sizeof sizes / sizeof *sizes; optind++) {
    sizes[rounds] = (size_t)atoi(argv[optind]);
    if (sizes[rounds] < SIZE_MIN) return 2;
    if (sizes[rounds] < smallest) smallest = sizes[rounds];
    rounds++;
  }
  if (!rounds || threads < 1 || threads > THREADS_MAX) return 2;
  budget <<= 20;
  capacity = budget / threads / smallest + 1;
  for (unsigned i = 0; i < threads; i++) {
    tables[i].blocks = mmap(NULL, capacity * sizeof(struct block), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (tables[i].blocks == MAP_FAILED) return perror("sizeshift: mmap"), 2;
    tables[i].next_id = i << 26;
  }
  mark("start", 0, 0.0);
  if (threads > 1) pthread_barrier_init(&barrier, NULL, threads);
  for (uintptr_t i = 1; i < threads; i++) {
    pthread_t id;
    if (pthread_create(&id, NULL, thread, (void *)i)) return 2;
  }
  work(0);
  for (unsigned i = 0; i < threads; i++)
    for (size_t k = 0; k < tables[i].count; k++) check(&tables[i].blocks[k]);
  mark("end", rounds, 0.0);
  if (wrong) fprintf(stderr, "sizeshift: %u blocks read back wrong\n", wrong);
  return wrong != 0;
}
