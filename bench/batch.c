/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three ways to have the kernel do one thing to many ranges: a plain call each, process_madvise on ourselves with a
 * vector of them, io_uring. For what the mesher does: dropping unused pages, making the pages of a mesh file, mapping
 * what was remapped.
 *
 *     batch [-b] [-n RANGES] [-p PAGES_EACH] [-r ROUNDS]
 *
 * -b: another thread runs meanwhile, so that flushes need interrupts. Prints "figure WHAT WAY wall=NS self=NS all=NS"
 * for each, ns a page, least of the rounds: elapsed; processor time of the calling thread; of the process, whose kernel
 * workers count. "-": the kernel refuses that way.
 */
#define _GNU_SOURCE
#include "arguments.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

enum { BATCH = 512, RING = 128, MAX_RANGES = 1 << 16 };
enum way { PLAIN, VECTOR, URING, WAYS };
static const char *const way_names[] = {"plain", "vector", "ring"};

static unsigned ranges = 2048, each = 1, rounds = 5;
static size_t page;
static char *memory;
static int file, self_fd;
static struct io_uring ring;

static char *range_at(unsigned i) { /* as far apart as they are long */
  return memory + (size_t)i * each * 2 * page;
}

static uint64_t clock_ns(clockid_t id) {
  struct timespec t;
  clock_gettime(id, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static size_t span(void) {
  return (size_t)ranges * each * 2 * page;
}

static void must(int fine, const char *what) {
  if (!fine) perror(what), exit(2);
}

/* ---- what is done to each range, and what it needs before ---- */

static void map_anonymous(void) {
  must(mmap(memory, span(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory, "mmap");
  must(madvise(memory, span(), MADV_NOHUGEPAGE) == 0, "madvise");
  for (unsigned i = 0; i < ranges; i++) memset(range_at(i), 1, each * page);
}

static void map_empty_file(void) {
  must(mmap(memory, span(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == memory, "mmap");
  must(ftruncate(file, 0) == 0 && ftruncate(file, (off_t)span()) == 0, "ftruncate");
}

static void map_full_file(void) {
  map_empty_file();
  must(fallocate(file, 0, 0, (off_t)span()) == 0, "fallocate");
  must(mmap(memory, span(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == memory, "mmap");
}

static int touch_all(void) {
  for (unsigned i = 0; i < ranges; i++)
    for (unsigned p = 0; p < each; p++) (void)*(volatile char *)(range_at(i) + p * page);
  return 0;
}

struct job {
  const char *name;
  void (*before)(void);
  int advice; /* 0: fallocate */
};

static int do_plain(const struct job *job) {
  for (unsigned i = 0; i < ranges; i++)
    if (job->advice ? madvise(range_at(i), each * page, job->advice)
                    : fallocate(file, 0, range_at(i) - memory, (off_t)(each * page)))
      return -errno;
  return 0;
}

static int do_vector(const struct job *job) {
  struct iovec iov[BATCH];
  if (!job->advice) return -ENOSYS; /* there is none */
  for (unsigned i = 0; i < ranges;) {
    unsigned n = 0;
    for (; n < BATCH && i < ranges; n++, i++) iov[n] = (struct iovec){range_at(i), each * page};
    if (syscall(SYS_process_madvise, self_fd, iov, n, job->advice, 0) != (long)(n * each * page)) return -errno;
  }
  return 0;
}

static int do_ring(const struct job *job) {
  int error = 0;
  for (unsigned i = 0; i < ranges;) {
    unsigned n = 0;
    for (; n < RING && i < ranges; n++, i++) {
      struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
      if (job->advice)
        io_uring_prep_madvise(sqe, range_at(i), (off_t)(each * page), job->advice);
      else
        io_uring_prep_fallocate(sqe, file, 0, range_at(i) - memory, (off_t)(each * page));
    }
    must(io_uring_submit_and_wait(&ring, n) >= 0, "io_uring_submit_and_wait");
    for (; n; n--) {
      struct io_uring_cqe *cqe;
      must(io_uring_wait_cqe(&ring, &cqe) == 0, "io_uring_wait_cqe");
      if (cqe->res < 0) error = cqe->res;
      io_uring_cqe_seen(&ring, cqe);
    }
  }
  return error;
}

static int do_it(const struct job *job, enum way way) {
  return way == PLAIN ? do_plain(job) : way == VECTOR ? do_vector(job) : do_ring(job);
}

static void least(uint64_t *value, uint64_t got) {
  if (got < *value) *value = got;
}

static void measure(const struct job *job, enum way way) {
  uint64_t wall = UINT64_MAX, self = UINT64_MAX, all = UINT64_MAX, pages = (uint64_t)ranges * each;
  int error = 0;
  for (unsigned r = 0; r < rounds && !error; r++) {
    job->before();
    uint64_t w = clock_ns(CLOCK_MONOTONIC), s = clock_ns(CLOCK_THREAD_CPUTIME_ID),
             a = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    error = way == WAYS ? touch_all() : do_it(job, way);
    least(&all, clock_ns(CLOCK_PROCESS_CPUTIME_ID) - a);
    least(&self, clock_ns(CLOCK_THREAD_CPUTIME_ID) - s);
    least(&wall, clock_ns(CLOCK_MONOTONIC) - w);
  }
  const char *name = way == WAYS ? "touch" : way_names[way];
  if (error)
    printf("figure %s %s -\n", job->name, name);
  else
    printf("figure %s %s wall=%lu self=%lu all=%lu\n", job->name, name, wall / pages, self / pages, all / pages);
}

static void *spin(void *unused) {
  for (volatile uint64_t i = 0;; i++) continue;
  return unused;
}

int main(int argc, char **argv) {
  int busy = 0;
  const struct argument known[] = {FLAG('b', busy), NUMBER('n', ranges), NUMBER('p', each), NUMBER('r', rounds)};
  if (!arguments_read(argc, argv, known, sizeof known / sizeof *known)) return 2;
  if (!ranges || ranges > MAX_RANGES || !each || !rounds) return 2;
  page = (size_t)sysconf(_SC_PAGESIZE);
  pthread_t other;
  if (busy) must(pthread_create(&other, NULL, spin, NULL) == 0, "pthread_create");
  memory = mmap(NULL, span(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  must(memory != MAP_FAILED, "mmap");
  must((file = memfd_create("batch", MFD_CLOEXEC)) >= 0, "memfd_create");
  must((self_fd = (int)syscall(SYS_pidfd_open, getpid(), 0)) >= 0, "pidfd_open");
  int r = io_uring_queue_init(RING, &ring, 0);
  static const struct job jobs[] = {{"drop", map_anonymous, MADV_DONTNEED},
                                    {"prepare-fallocate", map_empty_file, 0},
                                    {"prepare-populate", map_empty_file, MADV_POPULATE_WRITE},
                                    {"populate", map_full_file, MADV_POPULATE_READ}};
  for (size_t j = 0; j < sizeof jobs / sizeof *jobs; j++) {
    for (enum way way = PLAIN; way < WAYS; way++)
      if (way != URING || r == 0)
        measure(&jobs[j], way);
      else
        printf("figure %s ring -\n", jobs[j].name);
    if (jobs[j].advice == MADV_POPULATE_READ) measure(&jobs[j], WAYS);
  }
  return 0;
}
