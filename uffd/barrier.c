/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The barrier: by moving pages away (UFFDIO_MOVE), or by write-protecting them in place. Either way a touch that must
 * not happen now waits in the kernel and is announced to the fault thread. Contiguity is what makes it cheap: a call
 * over 64 neighbouring pages costs one flush, on kernels from 6.18 on.
 */
#include "src/log.h"
#include "src/probe.h"
#include "src/sys.h"
#include "src/thread.h"
#include "uffd/internal.h"
#include <errno.h>
#include <string.h>

struct mu_barrier mu_barrier;

static char *in_run(unsigned page) {
  return mu_barrier.start + ((size_t)page << mu_engine.shift);
}
static char *in_scratch(unsigned page) {
  return mu_engine.scratch + ((size_t)page << mu_engine.shift);
}
static struct uffdio_range range_of(unsigned page, unsigned n) {
  return (struct uffdio_range){(uintptr_t)in_run(page), (size_t)n << mu_engine.shift};
}
static uint64_t mask_of(unsigned page, unsigned n) {
  return (n == 64 ? ~(uint64_t)0 : (((uint64_t)1 << n) - 1)) << page;
}

/* Length of the run of set bits of mask that starts at bit `from`, at most up to bit `end`. */
static unsigned stretch(uint64_t mask, unsigned from, unsigned end) {
  unsigned n = 0;
  while (from + n < end && (mask >> (from + n) & 1)) n++;
  return n;
}

static int move(char *to, char *from, size_t len, uint64_t mode, size_t *moved) {
  struct mu_uffdio_move m = {.dst = (uintptr_t)to, .src = (uintptr_t)from, .len = len, .mode = mode};
  int r = mu_ioctl(mu_engine.uffd, MU_UFFDIO_MOVE, &m);
  *moved = m.move > 0 ? (size_t)m.move : 0;
  return r;
}

enum { PATIENCE = 1000 }; /* EAGAIN and EINTR pass, but nobody may wait for that for ever */

bool mu_wake_range(struct uffdio_range range) {
  for (int i = 0; i < PATIENCE; i++)
    if (mu_ioctl(mu_engine.uffd, UFFDIO_WAKE, &range) == 0) return true;
  return false;
}

/* Where it is refused, whoever waits goes on when the barrier is opened, by other means. */
bool mu_wake(unsigned page, unsigned n) {
  return mu_wake_range(range_of(page, n));
}

/* EAGAIN: the program is changing its mappings. */
static int insist(unsigned long request, void *arg) {
  int r = -EAGAIN;
  for (int i = 0; i < PATIENCE && r == -EAGAIN; i++) r = mu_ioctl(mu_engine.uffd, request, arg);
  return r;
}

void mu_fill_zero(unsigned page) {
  struct uffdio_zeropage z = {.range = range_of(page, 1)};
  int r = insist(UFFDIO_ZEROPAGE, &z);
  if (r < 0) mu_wake(page, 1); /* EEXIST: it is there by now */
}

/* Without userfaultfd nothing is closed: the program stands still instead. */
static bool without_barrier(void) {
  return mu_engine.uffd < 0;
}

/* ---- closing -------------------------------------------------------------------------------------------------------
 */

enum { MOVE_TRIES = 4 };

/* Which pages of a range are resident. False: nobody knows. */
static bool resident(void *start, unsigned pages, uint64_t *present) {
  uint64_t movable;
  int r = -EINTR;
  for (int i = 0; i < PATIENCE && r == -EINTR; i++) r = mu_resident(start, pages, present, &movable);
  return r == 0;
}

/* The same in scratch: after any error of UFFDIO_MOVE only the page tables tell what was moved (Linux 6.18 before
 * 6.18.51 can report an error for what it did move). */
static bool arrived(unsigned pages, uint64_t *present) {
  return resident(in_scratch(0), pages, present);
}

/* What a seccomp filter answers, as a rule, and the kernel not. */
static bool by_sandbox(int r) {
  return r == -EPERM || r == -EACCES || r == -ENOSYS;
}

/* Which were moved: they are in scratch, and no longer in the run. Scratch alone does not tell: mlockall may fill it
 * with zeros at any time. Nothing fills the run meanwhile, as that waits. False: nobody knows. */
static bool have_moved(uint64_t *moved) {
  uint64_t there, still;
  if (!arrived(mu_barrier.pages, &there) || !resident(in_run(0), mu_barrier.pages, &still)) return false;
  *moved = there & ~still;
  return true;
}

/* Moves a stretch of present pages out. Sets *have to the mask of those that arrived. False: nobody knows. */
static bool move_out(unsigned page, unsigned n, uint64_t *have) {
  uint64_t want = mask_of(page, n), gone;
  *have = 0;
  for (int i = 0; i < MOVE_TRIES && (want & ~*have); i++) {
    uint64_t missing = want & ~*have;
    unsigned from = (unsigned)__builtin_ctzll(missing), len = stretch(missing, from, page + n);
    size_t moved, bytes = (size_t)len << mu_engine.shift;
    int r = move(in_scratch(from), in_run(from), bytes, MU_UFFDIO_MOVE_DONTWAKE, &moved);
    if (r == 0 && moved == bytes) {
      *have |= mask_of(from, len);
      continue;
    }
    if (by_sandbox(r)) return true; /* it was not carried out at all */
    if (!have_moved(&gone)) return false;
    *have = gone & want;
    missing = want & ~*have;
    if (r != -EAGAIN && missing) {
      /* This page is refused: pinned, locked, shared, gone. Go on behind it. */
      want &= ~(missing & -missing);
      mu_count(&mu_engine_counters.refused, 1);
      MU_PROBE2(refused, in_run((unsigned)__builtin_ctzll(missing)), MU_REFUSED_KERNEL);
      i--; /* want has one page less: this ends */
    }
  }
  return true;
}

/* Sets *have to the pages that are in scratch now. False: nobody knows. */
static bool close_by_moving(uint64_t present, uint64_t *have) {
  *have = 0;
  for (unsigned page = 0; page < mu_barrier.pages;) {
    uint64_t more;
    unsigned n = stretch(present, page, mu_barrier.pages);
    if (n && !move_out(page, n, &more)) return false;
    if (n) *have |= more;
    page += n ? n : 1;
  }
  return true;
}

/* What is in scratch before anything was moved there would be taken for it: mlockall fills it, and cannot be undone. */
static bool scratch_is_empty(void) {
  uint64_t present;
  if (!arrived(MU_MAX_BARRIER_PAGES, &present)) return false;
  return !present || (mu_make_scratch() && arrived(MU_MAX_BARRIER_PAGES, &present) && !present);
}

/* ENOENT: before Linux 6.4 a call does one mapping only, so a range of several is divided until its parts are one each.
 * A page that is not registered, since it was remapped, is left out. */
static int protect(unsigned page, unsigned n, uint64_t mode) {
  struct uffdio_writeprotect w = {.range = range_of(page, n), .mode = mode};
  int r = insist(UFFDIO_WRITEPROTECT, &w);
  if (r != -ENOENT || n == 1) return r;
  int first = protect(page, n / 2, mode), second = protect(page + n / 2, n - n / 2, mode);
  return first < 0 ? first : second;
}

static int arm(void) {
  /* A file has no holes that trap: what is not mapped yet is the packed page, and a store to it meets the protection.
   */
  uint64_t mode = mu_barrier.backing == MU_MESH_FILE ? UFFDIO_REGISTER_MODE_WP
                  : mu_barrier.moves                 ? UFFDIO_REGISTER_MODE_MISSING
                                                     : UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
  struct uffdio_register reg = {.range = range_of(0, mu_barrier.pages), .mode = mode};
  return mu_ioctl(mu_engine.uffd, UFFDIO_REGISTER, &reg);
}

/* Where the range is several mappings, the first may be registered even so: holes in it would trap for ever. Other
 * errors come before that; EBUSY means that somebody else has registered memory here, which is his to disarm. */
static bool may_be_armed(int r) {
  return r == 0 || r == -ENOMEM;
}

/* Waiters are woken by it as well. */
static int disarm(void) {
  struct uffdio_range r = range_of(0, mu_barrier.pages);
  return mu_ioctl(mu_engine.uffd, UFFDIO_UNREGISTER, &r);
}

static void set_phase(enum mu_phase phase) {
  /* release: the fault thread that sees the phase sees the barrier's fields */
  atomic_store_explicit(&mu_barrier.phase, phase, memory_order_release);
}

/* Phase OPEN is set: waits until no event of this barrier is being handled any more. */
static void wait_for_fault_thread(void) {
  atomic_thread_fence(memory_order_seq_cst); /* phase before busy here, busy before phase there: one sees the other */
  for (unsigned i = 0; atomic_load_explicit(&mu_barrier.busy, memory_order_acquire); i++)
    mu_wait_a_little(&mu_barrier.busy, 1, i);
}

/* Write-protection does not stop who holds a pin already; one taken from now on waits like any store. */
static int close_by_protecting(void) {
  int r = protect(0, mu_barrier.pages, UFFDIO_WRITEPROTECT_MODE_WP);
  if (r == 0 && mu_no_pins()) return 0;
  protect(0, mu_barrier.pages, 0);
  return r < 0 ? r : -EBUSY;
}

/* Who has stored into a meshed page has a copy of his own, and the kernel may be about to store there for him (a pin
 * taken for I/O shows nowhere): such pages stay. Once the rest is protected, whoever wants to store waits. */
static int close_meshed(uint64_t wanted, uint64_t *refused) {
  uint64_t copies;
  int r = without_barrier() ? 0 : close_by_protecting();
  if (r == 0 && (r = mu_private_copies(in_run(0), mu_barrier.pages, &copies)) == 0) *refused = copies & wanted;
  return r;
}

/* What is resident is asked once touches of holes wait: what is a hole then stays one. Sets *present to the pages that
 * are behind the barrier, *refused to those that stay where they are. */
static int close_pages(uint64_t wanted, uint64_t *present, uint64_t *refused) {
  uint64_t movable;
  *refused = 0;
  *present = wanted;
  if (mu_barrier.backing == MU_MESH_FILE) return close_meshed(wanted, refused);
  int r = mu_resident(in_run(0), mu_barrier.pages, present, &movable);
  *present &= wanted;
  if (r < 0 || without_barrier()) return r;
  if (!mu_barrier.moves) return close_by_protecting();
  uint64_t have;
  if (close_by_moving(*present & movable, &have)) {
    *refused = *present & ~have;
    *present = have;
  } else {
    *refused = wanted; /* everything is put back, wherever it is */
    *present &= movable;
  }
  return 0;
}

static bool let_everybody_go(void);
static void abandon(void);

static int close_a_range(enum mu_backing backing, void *start, unsigned pages, unsigned unit_pages, uint64_t wanted,
                         uint64_t *refused) {
  uint64_t present;
  if (atomic_load_explicit(&mu_engine.broken, memory_order_relaxed)) return -EIO;
  bool moves = mu_engine.move && backing == MU_ANONYMOUS;
  if (moves && !scratch_is_empty()) return -EBUSY;
  mu_barrier.backing = backing;
  mu_barrier.moves = moves;
  mu_barrier.start = start;
  mu_barrier.pages = pages;
  mu_barrier.unit_pages = unit_pages;
  atomic_store_explicit(&mu_barrier.home, 0, memory_order_relaxed);
  set_phase(MU_PHASE_CLOSING);
  int r = without_barrier() ? 0 : arm();
  bool armed = !without_barrier() && may_be_armed(r);
  if (r == 0) r = close_pages(wanted, &present, refused);
  if (r < 0) { /* nothing was moved */
    set_phase(MU_PHASE_OPEN);
    wait_for_fault_thread();
    if (armed && !let_everybody_go()) abandon();
    return r;
  }
  atomic_store_explicit(&mu_barrier.present, present, memory_order_relaxed);
  for (unsigned u = 0; u < pages / unit_pages; u++) {
    bool whole = !(*refused & mask_of(u * unit_pages, unit_pages));
    atomic_store_explicit(&mu_barrier.units[u], whole ? MU_UNIT_CLOSED : MU_UNIT_RETURNED, memory_order_relaxed);
  }
  set_phase(MU_PHASE_CLOSED);
  /* A unit with a refused page is not meshed: what was moved of it goes back at once. */
  for (unsigned u = 0; u < pages / unit_pages; u++)
    if (*refused & mask_of(u * unit_pages, unit_pages)) mu_put_back(u * unit_pages, unit_pages);
  return 0;
}

int mu_barrier_close(enum mu_backing backing, void *start, unsigned pages, unsigned unit_pages, uint64_t wanted,
                     uint64_t *refused) {
  if (!without_barrier()) mu_thread_urgent(true);
  int r = close_a_range(backing, start, pages, unit_pages, wanted, refused);
  if (r < 0) mu_thread_urgent(false);
  return r;
}

/* ---- closed --------------------------------------------------------------------------------------------------------
 */

static bool swap_state(unsigned unit, uint32_t from, uint32_t to) {
  /* acquire and release: whoever wins sees what the other did before, and is seen */
  return atomic_compare_exchange_strong_explicit(&mu_barrier.units[unit], &from, to, memory_order_acq_rel,
                                                 memory_order_acquire);
}

bool mu_barrier_claim(unsigned unit) {
  return swap_state(unit, MU_UNIT_CLOSED, MU_UNIT_CLAIMED);
}

const void *mu_barrier_contents(unsigned unit) {
  unsigned page = unit * mu_barrier.unit_pages;
  return mu_barrier.moves ? in_scratch(page) : in_run(page);
}

uint64_t mu_barrier_present(void) {
  return atomic_load_explicit(&mu_barrier.present, memory_order_relaxed);
}

bool mu_barrier_remap(unsigned first, unsigned n, int fd, uint64_t offset) {
  unsigned page = first * mu_barrier.unit_pages, pages = n * mu_barrier.unit_pages;
  if (!mu_mmap_over(in_run(page), (size_t)pages << mu_engine.shift, MAP_PRIVATE | MAP_NORESERVE, fd, (off_t)offset))
    return false;
  for (unsigned u = first; u < first + n; u++)
    if (atomic_exchange_explicit(&mu_barrier.units[u], MU_UNIT_DONE, memory_order_acq_rel) == MU_UNIT_WAITED)
      mu_wake(u * mu_barrier.unit_pages, mu_barrier.unit_pages);
  return true;
}

static void note_home(unsigned page, unsigned n) {
  if (n) atomic_fetch_or_explicit(&mu_barrier.home, mask_of(page, n), memory_order_relaxed);
}

void mu_put_back(unsigned page, unsigned n) {
  if (without_barrier()) return;
  if (!mu_barrier.moves) {
    protect(page, n, 0);
    return;
  }
  uint64_t have = atomic_load_explicit(&mu_barrier.present, memory_order_relaxed);
  for (unsigned end = page + n; page < end;) {
    unsigned len = stretch(have, page, end);
    size_t bytes = (size_t)len << mu_engine.shift, done = 0, moved;
    for (int tries = 0; done < bytes; tries++) {
      int r = move(in_run(page) + done, in_scratch(page) + done, bytes - done, 0, &moved);
      note_home(page + (unsigned)(done >> mu_engine.shift), (unsigned)(moved >> mu_engine.shift));
      done += moved;
      /* ENOENT, EEXIST: the other of our two threads has put this page back, or it went with an earlier call whose
       * result was wrong. Page by page from here: each is in one place or the other. */
      if (r < 0 && !moved && (r != -EAGAIN || tries >= PATIENCE)) done += mu_engine.page;
    }
    page += len ? len : 1;
  }
  mu_wake(page - n, n);
}

/* ---- opening -------------------------------------------------------------------------------------------------------
 */

static uint64_t not_remapped(void) {
  uint64_t pages = 0;
  for (unsigned u = 0; u < mu_barrier.pages / mu_barrier.unit_pages; u++)
    if (atomic_load_explicit(&mu_barrier.units[u], memory_order_acquire) != MU_UNIT_DONE)
      pages |= mask_of(u * mu_barrier.unit_pages, mu_barrier.unit_pages);
  return pages;
}

/* The kernel would not move this page back: its bytes go instead. */
static bool copy_back(unsigned page) {
  struct uffdio_copy c = {
      .dst = (uintptr_t)in_run(page), .src = (uintptr_t)in_scratch(page), .len = (uint64_t)1 << mu_engine.shift};
  int r = mu_ioctl(mu_engine.uffd, UFFDIO_COPY, &c);
  return r == 0 || r == -EEXIST; /* there already: a copy of before whose page in scratch could not be dropped */
}

/* Nor that: they go with fresh memory, mapped there as it is. Nobody else is at these pages: their touches wait. */
static bool carry_back(unsigned page) {
  size_t len = (size_t)1 << mu_engine.shift;
  int err;
  void *copy = mu_mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
  if (!copy) return false;
  mu_madvise(copy, len, MADV_NOHUGEPAGE);
  memcpy(copy, in_scratch(page), len);
  long r = mu_sys_call(MU_SYS_mremap, (long)copy, (long)len, (long)len, MREMAP_MAYMOVE | MREMAP_FIXED,
                       (long)in_run(page), 0);
  if (r < 0 && r > -4096) mu_munmap(copy, len);
  return !(r < 0 && r > -4096);
}

/* Pages whose contents are in scratch and nowhere else. False: the kernel does not tell, so it is what was noted. */
static bool still_away(uint64_t *away) {
  bool told = have_moved(away);
  if (!told) *away = mu_barrier_present() & ~atomic_load_explicit(&mu_barrier.home, memory_order_relaxed);
  *away &= not_remapped();
  return told;
}

/* Brings home what is left in scratch, by one way after the other. False: what is left there is not known. */
static bool empty_scratch(void) {
  uint64_t away;
  bool told = still_away(&away);
  for (unsigned i = 0; away && i < MU_MAX_BARRIER_PAGES; i++) {
    mu_put_back((unsigned)__builtin_ctzll(away), 1);
    told = still_away(&away);
  }
  for (; away; away &= away - 1) {
    unsigned page = (unsigned)__builtin_ctzll(away);
    if (copy_back(page) || carry_back(page)) continue;
    mu_log("page %p cannot be put back: a sandbox refuses all ways to do so; whoever touches it waits",
           (void *)in_run(page));
    told = false;
  }
  return told;
}

enum { DISARM_TRIES = 8 };

/* Disarming wakes only who waits for what was still registered, and an event may never have been read. */
static bool let_everybody_go(void) {
  int r = -1;
  for (int i = 0; i < DISARM_TRIES && r < 0; i++) r = disarm();
  return mu_wake(0, mu_barrier.pages) && r == 0;
}

/* The last resort: without its descriptor nothing is registered any more, and nobody waits. Everything is at home. */
static void abandon(void) {
  atomic_store_explicit(&mu_engine.broken, 1, memory_order_release);
  mu_engine_lose("a sandbox refuses what ends a pass, so there are no more");
}

void mu_barrier_open(void) {
  unsigned size = mu_barrier.unit_pages;
  for (unsigned u = 0; u < mu_barrier.pages / size; u++) {
    uint32_t state = atomic_load_explicit(&mu_barrier.units[u], memory_order_acquire);
    if (state == MU_UNIT_CLAIMED || state == MU_UNIT_WAITED || swap_state(u, MU_UNIT_CLOSED, MU_UNIT_RETURNED)) {
      atomic_store_explicit(&mu_barrier.units[u], MU_UNIT_RETURNED, memory_order_release);
      mu_put_back(u * size, size);
    }
  }
  set_phase(MU_PHASE_OPEN);
  if (without_barrier()) return;
  wait_for_fault_thread();
  bool empty = !mu_barrier.moves || empty_scratch();
  if (!empty) atomic_store_explicit(&mu_engine.broken, 1, memory_order_release);
  if (!let_everybody_go()) abandon();
  mu_thread_urgent(false);
  if (empty && mu_barrier.moves)
    mu_madvise(mu_engine.scratch, (size_t)mu_barrier.pages << mu_engine.shift, MADV_DONTNEED);
}
