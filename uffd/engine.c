/* SPDX-License-Identifier: Apache-2.0 */
/* Start and stop of the kernel side, and what it knows of residency. */
#include "src/log.h"
#include "src/options.h"
#include "src/sys.h"
#include "uffd/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

struct mu_engine_counters mu_engine_counters;

/* Pages in transit. Registered for write-protection only: it makes scratch a destination for UFFDIO_MOVE, while our own
 * read of a hole in it just reads zeros. Not inherited: a child must not see half a pass. */
bool mu_make_scratch(void) {
  int err;
  size_t len = MU_MAX_BARRIER_PAGES * mu_engine.page;
  void *at = mu_mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
  if (!at) return false;
  struct uffdio_register reg = {.range = {(uintptr_t)at, len}, .mode = UFFDIO_REGISTER_MODE_WP};
  mu_madvise(at, len, MADV_NOHUGEPAGE);
  if (mu_madvise(at, len, MADV_DONTFORK) < 0 || mu_ioctl(mu_engine.uffd, UFFDIO_REGISTER, &reg) < 0) {
    mu_munmap(at, len);
    return false;
  }
  if (mu_engine.scratch) mu_munmap(mu_engine.scratch, len);
  mu_engine.scratch = at;
  return true;
}

static void give_up(const char *why) {
  if (mu_engine.uffd >= 0) mu_close(mu_engine.uffd);
  if (mu_engine.scratch) mu_munmap(mu_engine.scratch, MU_MAX_BARRIER_PAGES * mu_engine.page);
  mu_engine.uffd = -1;
  mu_engine.scratch = NULL;
  mu_engine.move = false;
  mu_format(mu_engine.why, sizeof mu_engine.why, "%s", why);
  atomic_store_explicit(&mu_engine.tier, MU_TIER_NONE, memory_order_release);
}

void mu_engine_lose(const char *why) {
  atomic_store_explicit(&mu_engine.closing, 1, memory_order_seq_cst);
  int fd = mu_engine.uffd;
  mu_engine.uffd = -1;
  if (mu_close(fd) < 0) mu_log("userfaultfd cannot be closed: a sandbox refuses it");
  mu_fault_thread_let_go(); /* while it reads, the kernel keeps it open */
  mu_format(mu_engine.why, sizeof mu_engine.why, "%s", why);
  atomic_store_explicit(&mu_engine.tier, MU_TIER_NONE, memory_order_release);
}

bool mu_engine_is_broken(void) {
  return atomic_load_explicit(&mu_engine.broken, memory_order_relaxed);
}

void mu_engine_own_descriptors(void) {
  mu_engine.own_table = mu_sys_call(MU_SYS_close_range, 0, (long)~0U, MU_CLOSE_RANGE_UNSHARE, 0, 0, 0) == 0;
  /* Descriptors 0 to 2 stay taken: nothing that prints to them may reach a file of ours. */
  for (int fd = 0; mu_engine.own_table && fd <= 2; fd++)
    if (mu_open("/dev/null", O_RDWR | O_CLOEXEC) < 0) mu_open("/", O_RDONLY | O_CLOEXEC);
}

/* Nothing helps who waits where this is refused. Nobody waits for any range yet. */
static bool can_wake(void) {
  struct uffdio_range r = {mu_round_down((uintptr_t)&mu_engine, mu_engine.page), mu_engine.page};
  return mu_ioctl(mu_engine.uffd, UFFDIO_WAKE, &r) == 0;
}

static bool pagemap_is_true(void);

void mu_engine_start(void) {
  mu_engine.page = getauxval(AT_PAGESZ);
  mu_engine.shift = (unsigned)__builtin_ctzl(mu_engine.page);
  if (!mu_engine.own_table) {
    give_up("no descriptor table of our own: close_range is refused (needs Linux 5.9)");
    return;
  }
  if (mu_options.test_page > mu_engine.page) {
    give_up("the size of pages is a simulated one");
    return;
  }
  mu_engine.pagemap = mu_open("/proc/thread-self/pagemap", O_RDONLY | O_CLOEXEC);
  if (mu_engine.pagemap < 0) {
    give_up("/proc/self/pagemap cannot be read");
    return;
  }
  if (!pagemap_is_true()) {
    mu_close(mu_engine.pagemap);
    mu_engine.pagemap = -1;
    give_up("/proc/self/pagemap tells of other memory than ours: an emulator");
    return;
  }
  mu_have_meshed_pages_dumped();
  mu_tier_probe();
  if (mu_options.drop_caps) mu_caps_drop_ptrace(); /* before another thread is made, which would have it too */
  if (mu_engine.uffd < 0) return;
  if (!can_wake()) {
    give_up("a sandbox does not let userfaultfd wake who waits");
    return;
  }
  if (mu_engine.move && !mu_make_scratch()) {
    give_up("no memory for pages in transit");
    return;
  }
  if (mu_fault_thread_start() < 0) give_up("the fault thread cannot be started");
}

void mu_engine_stop(void) {
  mu_fault_thread_stop();
  if (mu_engine.uffd >= 0) mu_close(mu_engine.uffd);
  if (mu_engine.pagemap >= 0) mu_close(mu_engine.pagemap);
  if (mu_engine.scratch) mu_munmap(mu_engine.scratch, MU_MAX_BARRIER_PAGES * mu_engine.page);
  mu_reclaim_idle();
  bool own_table = mu_engine.own_table;
  mu_engine_forget();
  mu_engine.own_table = own_table;
}

void mu_engine_forget(void) {
  mu_reclaim_forget();
  mu_engine = (struct mu_engine){.uffd = -1, .pagemap = -1};
  atomic_store_explicit(&mu_barrier.phase, MU_PHASE_OPEN, memory_order_relaxed);
  atomic_store_explicit(&mu_barrier.busy, 0, memory_order_relaxed);
}

/* ---- standing still ------------------------------------------------------------------------------------------------
 */

/* The program's one thread and the mesher. */
static bool two_tasks(void) {
  char buf[1024];
  int fd = mu_open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC), tasks = 0;
  if (fd < 0) return false;
  long n;
  while ((n = mu_sys_call(MU_SYS_getdents64, fd, (long)buf, sizeof buf, 0, 0, 0)) > 0)
    for (long at = 0; at < n; at += *(unsigned short *)(void *)(buf + at + 16)) tasks += buf[at + 19] != '.';
  mu_close(fd);
  return n == 0 && tasks == 2;
}

/* A ring of the program's own may write into its memory while it waits. */
static bool has_ring(void) {
  static const char word[] = "[io_uring]";
  char buf[4096 + sizeof word];
  size_t kept = 0;
  bool found = false;
  ssize_t n;
  int fd = mu_open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return true;
  while (!found && (n = mu_read(fd, buf + kept, 4096)) > 0) {
    found = memmem(buf, kept + (size_t)n, word, sizeof word - 1) != NULL;
    size_t all = kept + (size_t)n;
    kept = mu_min(all, sizeof word - 2);
    memmove(buf, buf + all - kept, kept);
  }
  mu_close(fd);
  return found;
}

bool mu_no_pins(void) {
  char text[4096];
  if (mu_read_file("/proc/thread-self/status", text, sizeof text) <= 0) return false;
  const char *locked = strstr(text, "VmLck:"), *pinned = strstr(text, "VmPin:");
  return locked && pinned && strtoul(locked + 6, NULL, 10) == 0 && strtoul(pinned + 6, NULL, 10) == 0;
}

bool mu_program_stands_still(void) {
  return mu_engine.own_table && two_tasks() && mu_no_pins() && !has_ring();
}

/* ---- residency -----------------------------------------------------------------------------------------------------
 */

static int read_pagemap(const void *start, unsigned pages, uint64_t *entry) {
  if (mu_engine.pagemap < 0) return -EBADF;
  size_t len = pages * sizeof *entry;
  ssize_t n = mu_pread(mu_engine.pagemap, entry, len, ((uintptr_t)start >> mu_engine.shift) * sizeof *entry);
  return n == (ssize_t)len ? 0 : n < 0 ? (int)n : -EIO;
}

int mu_resident(const void *start, unsigned pages, uint64_t *present, uint64_t *movable) {
  uint64_t entry[MU_MAX_BARRIER_PAGES];
  *present = *movable = 0;
  int r = read_pagemap(start, pages, entry);
  for (unsigned i = 0; r == 0 && i < pages; i++) {
    uint64_t bit = (uint64_t)1 << i;
    if (entry[i] & (MU_PM_PRESENT | MU_PM_SWAPPED)) *present |= bit;
    if ((entry[i] & MU_PM_PRESENT) && (entry[i] & MU_PM_EXCLUSIVE) && !(entry[i] & MU_PM_FILE)) *movable |= bit;
  }
  return r;
}

/* An emulator of processes has the kernel tell of its own addresses, which may be others than the program's; what it
 * takes for absent would be lost. */
static bool pagemap_is_true(void) {
  enum { PAGES = 8, TOUCHED = 0x8d };
  uint64_t present, movable;
  int err;
  _Atomic char *at =
      mu_mmap(NULL, PAGES * mu_engine.page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &err);
  if (!at) return true;
  mu_madvise(at, PAGES * mu_engine.page, MADV_NOHUGEPAGE);
  for (unsigned i = 0; i < PAGES; i++)
    if (TOUCHED >> i & 1) atomic_store_explicit(&at[i * mu_engine.page], 1, memory_order_relaxed);
  int r = mu_resident(at, PAGES, &present, &movable);
  mu_munmap(at, PAGES * mu_engine.page);
  return r < 0 || present == TOUCHED;
}

int mu_private_copies(const void *start, unsigned pages, uint64_t *copies) {
  uint64_t entry[MU_MAX_BARRIER_PAGES];
  *copies = 0;
  int r = read_pagemap(start, pages, entry);
  for (unsigned i = 0; r == 0 && i < pages; i++)
    /* Protection leaves a mark where nothing is mapped yet, which shows as swapped; a pinned page cannot be swapped
     * out. */
    if ((entry[i] & MU_PM_PRESENT) && !(entry[i] & MU_PM_FILE)) *copies |= (uint64_t)1 << i;
  return r;
}

bool mu_make_exclusive(void *start, unsigned pages) {
  uint64_t present, movable;
  if (mu_resident(start, pages, &present, &movable) < 0) return false;
  for (unsigned page = 0, n; page < pages; page += n) {
    bool ours = movable >> page & 1;
    for (n = 1; page + n < pages && (movable >> (page + n) & 1) == ours; n++) {
    }
    if (ours && mu_madvise((char *)start + ((size_t)page << mu_engine.shift), (size_t)n << mu_engine.shift,
                           MU_MADV_POPULATE_WRITE) < 0)
      return false;
  }
  return !(present & ~movable);
}
