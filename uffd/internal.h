/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of uffd/ share. */
#ifndef MU_UFFD_INTERNAL_H
#define MU_UFFD_INTERNAL_H

#include "uffd/compat.h"
#include "uffd/engine.h"

/* States of a unit; see ARCHITECTURE.md. */
enum mu_unit_state {
  MU_UNIT_IDLE,
  MU_UNIT_CLOSED,
  MU_UNIT_CLAIMED,
  MU_UNIT_WAITED, /* claimed, and somebody waits for it */
  MU_UNIT_RETURNED,
  MU_UNIT_DONE,
};

enum mu_phase {
  MU_PHASE_OPEN,
  MU_PHASE_CLOSING, /* pages in transit: nobody decides anything */
  MU_PHASE_CLOSED,
};

/* The one barrier. start, pages, unit_shift and present change only in phase OPEN. */
struct mu_barrier {
  _Atomic uint32_t phase;
  _Atomic uint32_t busy; /* the fault thread handles an event: the barrier's fields must not change */
  enum mu_backing backing;
  bool moves; /* contents are moved to scratch; else protected in place */
  char *start;
  unsigned pages, unit_pages;
  _Atomic uint64_t home;    /* pages of these that were moved back */
  _Atomic uint64_t present; /* pages whose contents are in scratch (move), or in place and protected */
  _Atomic uint32_t units[MU_MAX_BARRIER_PAGES];
};
extern struct mu_barrier mu_barrier;

struct mu_engine {
  bool own_table; /* the mesher's descriptors are its own */
  int uffd;
  int pagemap;
  _Atomic uint32_t tier;
  bool move; /* anonymous pages can be moved */
  char *scratch;
  _Atomic uint32_t broken;  /* the kernel refused to restore something: no barrier is closed any more */
  _Atomic uint32_t closing; /* userfaultfd is closed; the fault thread holds it no longer than it must */
  size_t page;
  unsigned shift;
  char why[256];
};
extern struct mu_engine mu_engine;

/* Opens userfaultfd as well as is allowed; sets tier, uffd, move and why. */
void mu_tier_probe(void);

/* Fresh memory for pages in transit, in place of what there was. */
bool mu_make_scratch(void);

/* From now on a core file of this process has the contents of meshed pages. */
void mu_have_meshed_pages_dumped(void);

/* Closes userfaultfd for good: what is registered with it is so no more, and everybody who waits goes on. */
void mu_engine_lose(const char *why);

int mu_fault_thread_start(void);
/* It ends by itself. */
void mu_fault_thread_let_go(void);
void mu_fault_thread_stop(void);

/* Moves pages back from scratch, or lifts their protection, [page, page + n) of the barrier; wakes. Any thread of ours.
 */
void mu_put_back(unsigned page, unsigned n);
bool mu_wake(unsigned page, unsigned n);
bool mu_wake_range(struct uffdio_range range);
/* A zero page for one that was not there; wakes. */
void mu_fill_zero(unsigned page);

#endif
