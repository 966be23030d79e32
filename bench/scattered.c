/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Few objects left of many: allocates 150,000 x 512 B, 100,000 x 1 KiB and 50,000 x 2 KiB in mixed order, keeps one in
 * twenty wherever it happens to be, frees the rest, then does nothing for a while, and reads what it kept.
 *
 *     scattered [-a] [-f FACTOR] [-i IDLE_SECONDS] [-m] [-s SEED] [-w]
 *
 * -m: sizes, counts and how many are kept are drawn from the seed, and printed, instead. -w: while idle, every object
 * that is left is written once a second.
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

enum { MIX_MAX = 8, KINDS_MIN = 4, BYTES_MIN = 8 << 20, BYTES_MAX = 64 << 20 };

static struct kind {
  uint32_t count, size, keep_one_in, kept;
} mix[MIX_MAX] = {{150000, 512, 20, 0}, {100000, 1024, 20, 0}, {50000, 2048, 20, 0}};
static uint32_t kinds = 3;

struct block {
  uint64_t *words;
  uint32_t kind;
  uint32_t id;
  uint64_t added; /* to each word, by writes */
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

/* Sizes from 16 B to 3 KiB, from one in 3 to one in 50 kept: both drawn evenly on a logarithmic scale, by integers
 * alone. */
static void draw_mix(void) {
  kinds = KINDS_MIN + (uint32_t)(rng() % (MIX_MAX - KINDS_MIN + 1));
  for (uint32_t i = 0; i < kinds; i++) {
    uint32_t doubling = (uint32_t)(rng() % 7), low = 16U << doubling,
             bytes = BYTES_MIN + (uint32_t)(rng() % (BYTES_MAX - BYTES_MIN));
    mix[i] = (struct kind){.size = (low + (uint32_t)(rng() % (low * 2))) & ~7U};
    mix[i].count = bytes / mix[i].size;
    doubling = (uint32_t)(rng() % 4);
    mix[i].keep_one_in = (3U << doubling) + (uint32_t)(rng() % (3U << doubling));
    fprintf(stderr, "mix: %u of %u B, one in %u kept\n", mix[i].count, mix[i].size, mix[i].keep_one_in);
  }
}

static size_t floor_bytes(void) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = 0;
  for (uint32_t i = 0; i < kinds; i++) pages += (mix[i].kept + page / mix[i].size - 1) / (page / mix[i].size);
  return pages * page;
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
  int length = snprintf(line, sizeof line, "mark %s live=%zu floor=%zu pss=%zu pte=%zu seconds=%.3f\n", name, live,
                        floor_bytes(), pss, pte, seconds);
  if (write(STDOUT_FILENO, line, (size_t)length) != length) _exit(3);
  if (acknowledged && read(STDIN_FILENO, line, 1) != 1) _exit(3);
}

static int is_right(const struct block *b) {
  for (uint32_t w = 0; w < mix[b->kind].size / 8; w++)
    if (b->words[w] != word(b->id, w) + b->added) return 0;
  return 1;
}

static void write_all(struct block *blocks, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    if (!blocks[i].words) continue;
    for (uint32_t w = 0; w < mix[blocks[i].kind].size / 8; w++) blocks[i].words[w]++;
    blocks[i].added++;
  }
}

int main(int argc, char **argv) {
  unsigned factor = 1, idle = 10, drawn = 0, written = 0;
  uint64_t seed = 1;
  for (int option; (option = getopt(argc, argv, "af:i:ms:w")) != -1;) switch (option) {
    case 'a':
      acknowledged = 1;
      break;
    case 'f':
      factor = (unsigned)atoi(optarg);
      break;
    case 'i':
      idle = (unsigned)atoi(optarg);
      break;
    case 'm':
      drawn = 1;
      break;
    case 'w':
      written = 1;
      break;
    case 's':
      seed = strtoull(optarg, NULL, 10);
      break;
    default:
      return 2;
    }
  rng_state = seed;
  if (drawn) draw_mix();

  uint32_t count = 0, filled = 0;
  for (uint32_t i = 0; i < kinds; i++) count += mix[i].count *= factor;
  struct block *blocks =
      mmap(NULL, count * sizeof *blocks + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (blocks == MAP_FAILED) return perror("scattered: mmap"), 2;
  for (uint32_t i = 0; i < kinds; i++)
    for (uint32_t k = 0; k < mix[i].count; k++) blocks[filled++].kind = i;
  for (uint32_t i = count - 1; i > 0; i--) {
    uint32_t k = (uint32_t)(rng() % (i + 1)), kind = blocks[i].kind;
    blocks[i].kind = blocks[k].kind;
    blocks[k].kind = kind;
  }
  mark("start", 0, 0.0);

  size_t live = 0;
  double began = now();
  for (uint32_t i = 0; i < count; i++) {
    struct block *b = &blocks[i];
    b->id = i;
    uint32_t size = mix[b->kind].size;
    b->words = malloc(size);
    if (!b->words) return perror("scattered: malloc"), 2;
    for (uint32_t w = 0; w < size / 8; w++) b->words[w] = word(i, w);
    live += size;
    mix[b->kind].kept++;
  }
  mark("full", live, now() - began);

  began = now();
  for (uint32_t i = 0; i < count; i++) {
    struct kind *k = &mix[blocks[i].kind];
    if (rng() % k->keep_one_in == 0) continue;
    live -= k->size;
    k->kept--;
    free(blocks[i].words);
    blocks[i].words = NULL;
  }
  mark("freed", live, now() - began);

  for (unsigned second = 0; second < idle; second++) {
    struct timespec rest = {.tv_sec = 1};
    while (nanosleep(&rest, &rest)) continue;
    if (written) write_all(blocks, count);
  }
  mark("idle", live, (double)idle);

  began = now();
  uint32_t wrong = 0;
  for (uint32_t i = 0; i < count; i++) wrong += blocks[i].words && !is_right(&blocks[i]);
  mark("read", live, now() - began);

  if (wrong) fprintf(stderr, "scattered: %u objects read back wrong\n", wrong);
  return wrong != 0;
}
