/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a store into memory that is being meshed costs: writers store to the objects that are left of a heap that was
 * thinned out, as fast as they can and each at random, while that heap is meshed. Then all is freed, and again.
 *
 *     pause [-p] [-r ROUNDS] [-t WRITERS] [-m HEAP_MIB] [-o OBJECT_BYTES] [-s SEED]
 *
 * -p: while writers write, all threads of the process have a real-time policy, so that what else runs on the machine
 * does not show (needs CAP_SYS_NICE). Between rounds they are ordinary, so that nothing else starves.
 * Every store is timed. One that took longer than SUSPECT_NS and during which the thread gave up its processor by
 * itself is a wait: nothing else in that loop waits. Waits of the kernel's page-fault lock show as such too. Prints one
 * "figure KEY=VALUE ..." line. Each object's first word is counted up by its one writer and checked before it is freed.
 */
#define _GNU_SOURCE
#include "arguments.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { WRITERS_MAX = 16, KEEP_ONE_IN = 10, SUSPECT_NS = 1500, BUCKETS = 64 * 16 };

struct histogram {
  uint64_t count[BUCKETS]; /* sixteen to a doubling */
  uint64_t all, worst;
};

struct writer {
  pthread_t thread;
  uint64_t **objects; /* its own */
  uint64_t *written;  /* what it last stored to each */
  size_t count;
  uint64_t rng;
  struct histogram stores, waits;
};

static struct writer writers[WRITERS_MAX];
static _Atomic int stop;

static uint64_t rng(uint64_t *state) { /* splitmix64 */
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static unsigned bucket(uint64_t ns) {
  if (ns < 16) return (unsigned)ns;
  unsigned log = 63 - (unsigned)__builtin_clzll(ns);
  return (log - 3) * 16 + (unsigned)(ns >> (log - 4) & 15);
}

/* The largest value of the bucket. */
static uint64_t top_of(unsigned i) {
  if (i < 16) return i;
  unsigned log = i / 16 + 3;
  return ((uint64_t)(16 + i % 16 + 1) << (log - 4)) - 1;
}

static void note(struct histogram *h, uint64_t ns) {
  h->count[bucket(ns)]++;
  h->all++;
  if (ns > h->worst) h->worst = ns;
}

static void add(struct histogram *to, const struct histogram *from) {
  for (unsigned i = 0; i < BUCKETS; i++) to->count[i] += from->count[i];
  to->all += from->all;
  if (from->worst > to->worst) to->worst = from->worst;
}

static uint64_t percentile(const struct histogram *h, double share) {
  uint64_t sum = 0, want = (uint64_t)((double)h->all * share);
  for (unsigned i = 0; i < BUCKETS; i++)
    if ((sum += h->count[i]) > want) return top_of(i) < h->worst ? top_of(i) : h->worst;
  return h->worst;
}

/* How often this thread gave up its processor by itself. */
static long waits_so_far(void) {
  struct rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nvcsw;
}

static void *write_on(void *argument) {
  struct writer *w = argument;
  long waits = waits_so_far();
  while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
    size_t i = rng(&w->rng) % w->count;
    _Atomic uint64_t *word = (_Atomic uint64_t *)w->objects[i];
    uint64_t value = ++w->written[i], began = now();
    atomic_store_explicit(word, value, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst);
    uint64_t took = now() - began;
    note(&w->stores, took);
    if (took < SUSPECT_NS) continue;
    long before = waits;
    waits = waits_so_far();
    if (waits != before) note(&w->waits, took);
  }
  return NULL;
}

/* Every thread of the process, those of the library too. */
static void set_policy(int policy, int priority) {
  struct sched_param param = {.sched_priority = priority};
  DIR *tasks = opendir("/proc/self/task");
  if (!tasks) return;
  for (const struct dirent *entry; (entry = readdir(tasks));)
    if (entry->d_name[0] != '.' && sched_setscheduler(atoi(entry->d_name), policy, &param) && errno != ESRCH)
      perror("pause: sched_setscheduler"), _exit(2);
  closedir(tasks);
}

static void *take(size_t bytes) {
  void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (p == MAP_FAILED) perror("pause: mmap"), _exit(2);
  return p;
}

static void fill(uint64_t **all, size_t count, size_t bytes, unsigned threads, uint64_t *state) {
  for (size_t i = 0; i < count; i++) {
    if (!(all[i] = malloc(bytes))) perror("pause: malloc"), _exit(2);
    memset(all[i], 0x5a, bytes);
  }
  for (unsigned t = 0; t < threads; t++) writers[t].count = 0;
  for (size_t i = 0, kept = 0; i < count; i++) {
    if (rng(state) % KEEP_ONE_IN) {
      free(all[i]);
      continue;
    }
    struct writer *w = &writers[kept++ % threads];
    w->written[w->count] = 0;
    *all[i] = 0;
    w->objects[w->count++] = all[i];
  }
}

static size_t empty(unsigned threads) {
  size_t wrong = 0;
  for (unsigned t = 0; t < threads; t++)
    for (size_t i = 0; i < writers[t].count; i++) {
      wrong += *writers[t].objects[i] != writers[t].written[i];
      free(writers[t].objects[i]);
    }
  return wrong;
}

static void print(const char *name, const struct histogram *h) {
  printf(" %s=%lu %s_50=%lu %s_99=%lu %s_9999=%lu %s_worst=%lu", name, h->all, name, percentile(h, 0.5), name,
         percentile(h, 0.99), name, percentile(h, 0.9999), name, h->worst);
}

int main(int argc, char **argv) {
  unsigned rounds = 20, threads = 1, real_time = 0;
  size_t heap = 32, bytes = 512, wrong = 0;
  uint64_t seed = 1;
  const struct argument known[] = {FLAG('p', real_time), NUMBER('r', rounds), NUMBER('t', threads),
                                   NUMBER('m', heap),    NUMBER('o', bytes),  NUMBER('s', seed)};
  if (!arguments_read(argc, argv, known, sizeof known / sizeof *known)) return 2;
  if (!rounds || !threads || threads > WRITERS_MAX || !heap || bytes < 16) return 2;
  /* Found at run time, so that other allocators run the same program: there the heap is left alone for a moment. */
  size_t (*compact)(void);
  *(void **)&compact = dlsym(RTLD_DEFAULT, "mesh_uffd_compact");
  size_t count = (heap << 20) / bytes, meshed = 0;
  uint64_t **all = take(count * sizeof *all);
  for (unsigned t = 0; t < threads; t++) {
    writers[t].objects = take(count * sizeof *all);
    writers[t].written = take(count * sizeof(uint64_t));
    writers[t].rng = seed + t;
  }
  for (unsigned r = 0; r < rounds; r++) {
    fill(all, count, bytes, threads, &seed);
    atomic_store(&stop, 0);
    for (unsigned t = 0; t < threads; t++)
      if (pthread_create(&writers[t].thread, NULL, write_on, &writers[t])) return 2;
    uint64_t end = now() + 100000000;
    if (real_time) set_policy(SCHED_RR, 1);
    meshed += compact ? compact() : 0;
    while (now() < end) usleep(5000);
    atomic_store(&stop, 1);
    if (real_time) set_policy(SCHED_OTHER, 0);
    for (unsigned t = 0; t < threads; t++) pthread_join(writers[t].thread, NULL);
    wrong += empty(threads);
  }
  struct histogram stores = {0}, waits = {0};
  for (unsigned t = 0; t < threads; t++) add(&stores, &writers[t].stores), add(&waits, &writers[t].waits);
  printf("figure given_back=%zu wrong=%zu", meshed, wrong);
  print("stores", &stores);
  print("waits", &waits);
  printf("\n");
  return wrong != 0;
}
