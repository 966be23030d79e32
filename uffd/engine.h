/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel side, as src/ sees it. Knows memory as address ranges only. But for mu_engine_tier and the counters,
 * everything here is called by the mesher thread alone, one pass at a time.
 */
#ifndef MU_ENGINE_H
#define MU_ENGINE_H

#include "src/common.h"

enum { MU_MAX_BARRIER_PAGES = 64 };

enum mu_tier { MU_TIER_UNKNOWN, MU_TIER_FULL, MU_TIER_FULL_WP, MU_TIER_USER, MU_TIER_NONE };

/*
 * First thing in the mesher thread: makes its descriptor table its own, so that whatever the program does to its
 * descriptors does not reach ours. Where that is refused, nothing here ever opens one, and there is no meshing.
 */
void mu_engine_own_descriptors(void);

/*
 * Finds the best tier that is allowed, and in the full tiers opens
 * userfaultfd and starts the fault thread. Never fails: the worst result is MU_TIER_NONE.
 */
void mu_engine_start(void);
enum mu_tier mu_engine_tier(void);
/* In the tiers without a barrier: whether the program stands still, so that none is needed. It must have one thread,
 * which waits for us, and nothing the kernel may still write for it. */
bool mu_program_stands_still(void);
/* False where memory is pinned or locked, which only moving pages finds out. */
bool mu_no_pins(void);
/* No barrier is closed any more. */
bool mu_engine_is_broken(void);
/* One line for people: why it is this tier, and what would raise it. */
const char *mu_engine_why(void);
/* Ends the fault thread and closes everything. No barrier is closed. */
void mu_engine_stop(void);
/*
 * Has the fault thread wait for a descriptor too, at most two, and call `rung` whenever one has something urgent to
 * tell (POLLPRI). Until the engine stops. False: there is no such thread, or no room.
 */
bool mu_engine_watch(int fd, void (*rung)(void));
/* In a forked child: forgets everything, without closing: none of it exists here. */
void mu_engine_forget(void);

/* In a constructor, since opening allocates and takes the dynamic linker's lock: opens what the kernel side uses and
 * the library does not contain. */
#ifdef MU_OPEN_DEPS
void mu_open_libraries(void);
#else
static inline void mu_open_libraries(void) {}
#endif

/* Whether the calling thread has the capability that allows full userfaultfd. */
bool mu_caps_have_ptrace(void);
/* Gives it up, for good. False: the thread has it still, or may have. */
bool mu_caps_drop_ptrace(void);
/* In a constructor, since that allocates: opens what mu_caps_drop_ptrace uses. */
void mu_caps_open(void);

/*
 * After a fork the kernel moves no page from before until it has been written. Does what a write would do to the pages
 * of the range that no other process maps any more. True when that is all of them.
 */
bool mu_make_exclusive(void *start, unsigned pages);

/* Which pages of a private mapping of a mesh file were stored to (bit i: page i). 0 or -errno. */
int mu_private_copies(const void *start, unsigned pages, uint64_t *copies);

/* ---- barrier: while it is closed, every touch of the range waits, unless mentioned below ------------------------- */

/* Which pages of a range are resident (bit i: page i), and which of those could be moved: not shared with a forked
 * child, not swapped out. -errno when the kernel does not tell. */
int mu_resident(const void *start, unsigned pages, uint64_t *present, uint64_t *movable);

/* What is mapped in the range of a barrier: it decides how it is closed. */
enum mu_backing {
  MU_ANONYMOUS, /* private anonymous memory: moved away, or write-protected, and its holes trap */
  MU_MESH_FILE, /* meshed already, a private mapping of a mesh file: write-protected */
};

/*
 * Closes [start, start + pages), of one backing, pages <= 64, as units of unit_pages (a power of two that
 * divides pages). Only pages of `wanted` (bit i: page i) are taken away; whole units should be wanted. Returns 0, or
 * -errno with the range as it was. After it, each unit is either closed or was refused, since the kernel would not give
 * up a page of it: then its pages are in *refused and mu_barrier_claim is false for it.
 */
int mu_barrier_close(enum mu_backing backing, void *start, unsigned pages, unsigned unit_pages, uint64_t wanted,
                     uint64_t *refused);
/* Wins the unit: nobody opens it before remap, release or open. False: somebody touched it, or it was refused. */
bool mu_barrier_claim(unsigned unit);
/* Where the unit's contents can be read. Pages that were not resident must not be read. */
const void *mu_barrier_contents(unsigned unit);
/* The pages of the barrier whose contents are there (bit i: page i). */
uint64_t mu_barrier_present(void);
/* Maps n claimed units, from `first` on, privately onto the file at `offset`, and wakes who waits for them. False: not
 * mapped; they stay claimed. */
bool mu_barrier_remap(unsigned first, unsigned n, int fd, uint64_t offset);
/* Opens the barrier: what was not remapped is as before, everybody goes on. Should the kernel refuse to restore
 * something, no barrier is closed ever again. */
void mu_barrier_open(void);

/* ---- mesh files ----------------------------------------------------------------------------------------------------
 */

struct mu_mesh_file {
  int fd;
  char *window; /* writable, shared; gone once sealed */
  size_t bytes;
};

/* A new file of that length, empty. Returns 0 or -errno. */
int mu_file_create(struct mu_mesh_file *file, size_t bytes);
/* Makes pages for a range, so that storing through the window cannot fail. Returns 0 or -errno. */
int mu_file_prepare(struct mu_mesh_file *file, uint64_t offset, size_t len);
/* The same ahead of time, by io_uring. begin is false when that cannot be; wait returns 0 when everything begun is
 * done, else -errno: then what was begun may be done or not. */
bool mu_file_prepare_begin(struct mu_mesh_file *file, uint64_t offset, size_t len);
int mu_file_prepare_wait(void);
/* Gives pages back that nothing was ever stored to. Returns 0 or -errno. */
int mu_file_unmake(struct mu_mesh_file *file, uint64_t offset, size_t len);
/* No store comes any more: window and descriptor go; mappings stay. */
void mu_file_seal(struct mu_mesh_file *file);

/* ---- reclaim -------------------------------------------------------------------------------------------------------
 */

struct mu_range {
  void *start;
  size_t len;
};
/* Makes ranges of private anonymous memory read as zeros, their pages given back. Done when it returns. False: some may
 * be as they were. */
bool mu_drop(const struct mu_range *ranges, size_t n);
/* Has freshly remapped memory mapped in the background, so that the program does not take the minor faults. Nothing
 * depends on it. */
void mu_populate(void *start, size_t len);
/* Tears down what is only worth having while there is work. */
void mu_reclaim_idle(void);
/* In a forked child. */
void mu_reclaim_forget(void);

/* ---- counters; any thread may read ---- */
struct mu_engine_counters {
  _Atomic uint64_t faults, longest_fault_ns, refused, ops_ring, ops_vector, ops_plain;
  _Atomic uint64_t fault_ns[64]; /* histogram: [i] counts resolutions that took 2^i..2^(i+1)-1 ns */
};
extern struct mu_engine_counters mu_engine_counters;

static inline void mu_count(_Atomic uint64_t *counter, uint64_t n) {
  atomic_fetch_add_explicit(counter, n, memory_order_relaxed); /* a statistic orders nothing */
}

#endif
