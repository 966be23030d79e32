/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Few objects left of many: allocates 150,000 x 512 B, 100,000 x 1 KiB and 50,000 x 2 KiB in mixed order, keeps one in
 * twenty wherever it happens to be, frees the rest, then does nothing for a while, and reads what it kept.
 *
 *     scattered [-a] [-f FACTOR] [-i IDLE_SECONDS] [-s SEED]
 *
 * Prints "mark NAME key=value ..." lines: the bytes it holds, and its own memory as it measures it itself (PSS + page
 * tables). With -a it waits for a byte on standard input after each, for a driver that measures from outside. Its own
 * tables and buffers are not from malloc, and are touched before the first mark.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { KEEP_ONE_IN = 20 };

static const struct { uint32_t count, size; } MIX[] = {{150000, 512}, {100000, 1024}, {50000, 2048}};

struct block {
  uint64_t *words;
  uint32_t size;
  uint32_t id;
};

static char text[16384];
static int acknowledged;
static uint64_t rng_state;

static uint64_t rng(void) { /* splitmix64 */
  uint64_t z = rng_state += 0x9e3779b97f4a7c15u;
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

static void mark(const char *name, size_t live, double seconds) {
  char line[256]; /* write, not printf: stdio's buffer would come from malloc */
  size_t pss = field("/proc/self/smaps_rollup", "\nPss:"), pte = field("/proc/self/status", "\nVmPTE:");
  int length =
      snprintf(line, sizeof line, "mark %s live=%zu pss=%zu pte=%zu seconds=%.3f\n", name, live, pss, pte, seconds);
  if (write(STDOUT_FILENO, line, (size_t)length) != length) _exit(3);
  if (acknowledged && read(STDIN_FILENO, line, 1) != 1) _exit(3);
}

int main(int argc, char **argv) {
  unsigned factor = 1, idle = 10;
  uint64_t seed = 1;
  for (int option; (option = getopt(argc, argv, "af:i:s:")) != -1;) switch (option) {
    case 'a':
      acknowledged = 1;
      break;
    case 'f':
      factor = (unsigned)atoi(optarg);
      break;
    case 'i':
      idle = (unsigned)atoi(optarg);
      break;
    case 's':
      seed = strtoull(optarg, NULL, 10);
      break;
    default:
      return 2;
    }
  rng_state = seed;

  uint32_t count = 0;
  for (size_t i = 0; i < sizeof MIX / sizeof *MIX; i++) count += MIX[i].count * factor;
  struct block *blocks =
      mmap(NULL, count * sizeof *blocks + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (blocks == MAP_FAILED) return perror("scattered: mmap"), 2;
  uint32_t filled = 0;
  for (size_t i = 0; i < sizeof MIX / sizeof *MIX; i++)
    for (uint32_t k = 0; k < MIX[i].count * factor; k++) blocks[filled++].size = MIX[i].size;
  for (uint32_t i = count - 1; i > 0; i--) {
    uint32_t k = (uint32_t)(rng() % (i + 1)), size = blocks[i].size;
    blocks[i].size = blocks[k].size;
    blocks[k].size = size;
  }
  mark("start", 0, 0.0);

  size_t live = 0;
  double began = now();
  for (uint32_t i = 0; i < count; i++) {
    struct block *b = &blocks[i];
    b->id = i;
    b->words = malloc(b->size);
    if (!b->words) return perror("scattered: malloc"), 2;
    for (uint32_t w = 0; w < b->size / 8; w++) b->words[w] = word(i, w);
    live += b->size;
  }
  mark("full", live, now() - began);

  began = now();
  for (uint32_t i = 0; i < count; i++) {
    if (rng() % KEEP_ONE_IN == 0) continue;
    live -= blocks[i].size;
    free(blocks[i].words);
    blocks[i].words = NULL;
  }
  mark("freed", live, now() - began);

  struct timespec rest = {.tv_sec = idle};
  while (nanosleep(&rest, &rest)) continue;
  mark("idle", live, (double)idle);

  began = now();
  uint32_t wrong = 0;
  for (uint32_t i = 0; i < count; i++)
    if (blocks[i].words)
      for (uint32_t w = 0; w < blocks[i].size / 8; w++)
        if (blocks[i].words[w] != word(i, w)) {
          wrong++;
          break;
        }
  mark("read", live, now() - began);

  if (wrong) fprintf(stderr, "scattered: %u objects read back wrong\n", wrong);
  return wrong != 0;
}
