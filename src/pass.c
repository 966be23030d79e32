/* SPDX-License-Identifier: Apache-2.0 */
#include "src/pass.h"
#include "src/global_heap.h"
#include "src/huge.h"
#include "src/mesh_files.h"
#include "src/mesh_search.h"
#include "src/mesher.h"
#include "src/numa.h"
#include "src/options.h"
#include "src/pack.h"
#include "src/probe.h"
#include "src/stats.h"
#include "src/sys.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum {
  MOST_PROBES = 4096, /* packed units that are looked at for each unit */
  MAX_UNIT_PAGES = 32,
  RUNS_PER_FILE = 4,
  MIN_VICTIM_PAGES = 16,           /* a file or two: emptying fewer is not worth the search */
  MAX_WORDS = MAX_UNIT_PAGES * 64, /* 16-byte slots of 64 KiB pages */
  BACKOFF_TICKS = 50,
  MAX_FAILURES = 8,
  ANCHOR_GAIN = 4,        /* a run is copied as an anchor only if a quarter of its pages is saved by what joins it */
  HOPEFUL_SHARE = 8,      /* of the spans of a run must not be too full, or it is left alone */
  FIRST_FIXED_NS = 30000, /* of a barrier, and for each page: to begin with, from a virtual machine of 2023 */
  FIRST_PAGE_NS = 8000,
  FRESH_SLICE_NS = 1000000, /* about a third of a time slice */
  MAPPING_BYTES = 200,      /* that one takes of the kernel's memory: its record, and its share of the tree */
};

struct mu_lock mu_passes = MU_LOCK_INIT(MU_RANK_PASS), mu_gate = MU_LOCK_INIT(MU_RANK_GATE);

/* Who waits for the lock: the mesher, which takes it again and again, lets them go first. */
static _Atomic uint32_t waiters;
static _Atomic uint32_t paused;

void mu_pass_lock(void) {
  atomic_fetch_add_explicit(&waiters, 1, memory_order_relaxed);
  mu_lock_take(&mu_passes);
  atomic_fetch_sub_explicit(&waiters, 1, memory_order_relaxed);
}

bool mu_pass_seize(uint64_t end) {
  atomic_fetch_add_explicit(&waiters, 1, memory_order_relaxed);
  bool taken = mu_lock_seize(&mu_passes, end);
  atomic_fetch_sub_explicit(&waiters, 1, memory_order_relaxed);
  return taken;
}

void mu_pass_unlock(void) {
  mu_lock_release(&mu_passes);
}

enum { YIELDS = 1000 };

static void lock_behind_others(void) {
  for (int i = 0; i < YIELDS && atomic_load_explicit(&waiters, memory_order_relaxed); i++)
    mu_sys_call(MU_SYS_sched_yield, 0, 0, 0, 0, 0, 0);
  mu_lock_take(&mu_passes);
}

bool mu_pass_paused(void) {
  return atomic_load_explicit(&paused, memory_order_relaxed);
}

void mu_pass_pause(void) {
  atomic_fetch_add_explicit(&paused, 1, memory_order_relaxed);
  mu_pass_lock(); /* one that is under way ends first; none begins, since that is asked under the lock */
  mu_pass_unlock();
}

void mu_pass_resume(void) {
  atomic_fetch_sub_explicit(&paused, 1, memory_order_relaxed);
}

void mu_pass_forget_waiters(void) {
  atomic_store_explicit(&waiters, 0, memory_order_relaxed);
}

/* ---- mapping budget ------------------------------------------------------------------------------------------------
 */

enum { DEFAULT_MAX_MAPS = 65530, LEFT_TO_PROGRAM = 8000 };
static uint64_t mapping_budget;

static uint64_t mappings_of_process(void) {
  char buf[8192];
  uint64_t lines = 0;
  ssize_t n;
  int fd = mu_open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  while ((n = mu_read(fd, buf, sizeof buf)) > 0)
    for (ssize_t i = 0; i < n; i++) lines += buf[i] == '\n';
  mu_close(fd);
  return lines;
}

enum { REFRESH_TICKS = 20 }; /* counting a process's mappings takes long where there are many */

void mu_mapping_budget_refresh(void) {
  static uint32_t last;
  uint32_t tick = atomic_load_explicit(&mu_tick, memory_order_relaxed);
  if (mapping_budget && tick - last < REFRESH_TICKS) return;
  last = tick;
  char text[32];
  uint64_t max = DEFAULT_MAX_MAPS, all = mappings_of_process();
  if (mu_read_file("/proc/sys/vm/max_map_count", text, sizeof text) > 0) max = strtoull(text, NULL, 10);
  uint64_t ours = atomic_load_explicit(&mu_mesh_mappings, memory_order_relaxed);
  uint64_t program = all > ours ? all - ours : 0;
  uint64_t share = max * mu_options.mapping_share / 100, reserve = LEFT_TO_PROGRAM + program;
  mapping_budget = max > reserve ? (share < max - reserve ? share : max - reserve) : 0;
}

uint64_t mu_mapping_budget(void) {
  return mapping_budget;
}

static bool mappings_left(uint64_t n) {
  return atomic_load_explicit(&mu_mesh_mappings, memory_order_relaxed) + n <= mapping_budget;
}

/* ---- bitmaps of units ----------------------------------------------------------------------------------------------
 */

/* A unit's bitmap is its spans' bitmaps one after the other, each in whole words. */
struct shape {
  unsigned size_class, unit_pages, units_per_run, spans_per_unit, words;
  unsigned node; /* of the machine: what is on others is left out */
  const struct mu_size_class *k;
};

static struct shape shape_of(unsigned c, unsigned unit_pages) {
  const struct mu_size_class *k = &mu_classes[c];
  unsigned spans = unit_pages / k->span_pages;
  return (struct shape){.size_class = c,
                        .unit_pages = unit_pages,
                        .units_per_run = MU_RUN_PAGES / unit_pages,
                        .spans_per_unit = spans,
                        .words = spans * k->words,
                        .k = k};
}

static size_t first_page(uint32_t run) {
  return (size_t)run * MU_RUN_PAGES;
}

static void read_bits(const struct shape *s, uint32_t run, uint64_t *bits) {
  for (size_t page = first_page(run); page < first_page(run) + MU_RUN_PAGES;
       page += s->k->span_pages, bits += s->k->words)
    memcpy(bits, mu_mini_heap(page)->bitmap, s->k->words * sizeof *bits);
}

/* Calls f for each set slot of a unit, with its offset in bytes from the unit's start. */
#define FOR_EACH_SLOT(s, bits, offset)                                                                                 \
  for (unsigned w_ = 0; w_ < (s)->words; w_++)                                                                         \
    for (uint64_t b_ = (bits)[w_]; b_; b_ &= b_ - 1)                                                                   \
      for (size_t offset = slot_offset((s), w_, (unsigned)__builtin_ctzll(b_)), once_ = 1; once_; once_ = 0)

static size_t slot_offset(const struct shape *s, unsigned word, unsigned bit) {
  unsigned span = word / s->k->words, slot = word % s->k->words * 64 + bit;
  return (((size_t)span * s->k->span_pages) << mu_arena.page_shift) + (size_t)slot * s->k->size;
}

/* Pages of the unit that hold bytes of its live slots. */
static uint64_t pages_of_slots(const struct shape *s, const uint64_t *bits) {
  uint64_t pages = 0;
  FOR_EACH_SLOT(s, bits, offset) {
    pages |= (uint64_t)1 << (offset >> mu_arena.page_shift);
    pages |= (uint64_t)1 << ((offset + s->k->size - 1) >> mu_arena.page_shift);
  }
  return pages;
}

/* Likelihood that two units of so many live slots have none in common. */
static double likely_disjoint(unsigned slots, unsigned live) {
  double p = 1, other = 1 - (double)live / slots;
  for (unsigned i = 0; i < live; i++) p *= other;
  return p;
}

/* A unit with more live slots than this finds no other like it among as many as are worth looking at. */
static unsigned most_live(unsigned c, unsigned unit_pages) {
  static uint32_t known[MU_CLASSES][8];
  const struct mu_size_class *k = &mu_classes[c];
  uint32_t *most = &known[c][mu_log2(unit_pages)];
  unsigned slots = k->slots * (unit_pages / k->span_pages);
  while (!*most || (*most < slots && likely_disjoint(slots, *most + 1) * MOST_PROBES >= 0.5)) ++*most;
  return *most;
}

static unsigned population(const uint64_t *bits, unsigned words) {
  unsigned n = 0;
  for (unsigned i = 0; i < words; i++) n += (unsigned)__builtin_popcountll(bits[i]);
  return n;
}

static bool disjoint(const uint64_t *a, const uint64_t *b, unsigned words) {
  uint64_t both = 0;
  for (unsigned i = 0; i < words; i++) both |= a[i] & b[i];
  return !both;
}

/* ---- one run -------------------------------------------------------------------------------------------------------
 */

static const void *unit_address(const struct shape *s, uint32_t run, unsigned unit) {
  return mu_page_address(first_page(run) + (size_t)unit * s->unit_pages);
}

/* Where a unit is to go. One without a live slot goes along with its neighbours, so that one mapping is enough. */
struct goal {
  struct mu_pack *pack; /* NULL: stays */
  uint32_t unit;
};

struct run_pass {
  const struct shape *s;
  uint32_t run;
  bool anchor;
  bool again;    /* a run that is meshed: its units that show victims go elsewhere */
  bool mixed;    /* some of its units are meshed, others private memory: stretches of units that go are closed */
  uint64_t dead; /* again: units that show victims and have no live slot */
  struct goal goals[MU_RUN_PAGES];
  uint64_t *bits; /* [units_per_run * words] at the time it was closed */
  uint64_t done;  /* units that are meshed */
  size_t saved;   /* pages */
  bool faulted;   /* somebody touched a unit meanwhile */
};

static const uint64_t *bits_of(const struct run_pass *p, unsigned unit) {
  return p->bits + (size_t)unit * p->s->words;
}
static uint64_t *packed_bits(const struct goal *g) {
  return g->pack->bits + (size_t)g->unit * g->pack->words;
}

/* Where pins cannot be seen: sizes that are likely to be buffers for direct I/O. */
static bool class_excluded(const struct mu_size_class *k) {
  return mu_engine_tier() != MU_TIER_FULL && (k->size > 1024 || k->size % 512 == 0);
}

/* Left alone: spans with an exempt object; where pins cannot be seen, also what is aligned well enough to be such a
 * buffer. */
static bool span_excluded(const struct shape *s, const struct mu_mini_heap *span) {
  if (span->exempt || span->state != MU_SPAN_CLOSED || class_excluded(s->k)) return true;
  return mu_engine_tier() != MU_TIER_FULL && (span->flags & MU_MH_ALIGNED);
}

static bool unit_excluded(const struct shape *s, uint32_t run, unsigned unit) {
  size_t page = first_page(run) + (size_t)unit * s->unit_pages;
  for (unsigned i = 0; i < s->unit_pages; i += s->k->span_pages)
    if (span_excluded(s, mu_mini_heap(page + i))) return true;
  return false;
}

/* A run of which some units are meshed is divided already. */
static bool worth_closing(const struct shape *s, uint32_t r) {
  const struct mu_run *run = &mu_arena.runs[r];
  return run->in_use && run->size_class == s->size_class && !run->closed && run->used &&
         (!run->meshed || 1U << run->unit_log == s->unit_pages);
}

static bool worth_holding(const struct shape *s, uint32_t r) {
  const struct mu_run *run = &mu_arena.runs[r];
  return run->in_use && run->size_class == s->size_class && run->meshed && !run->closed && run->used &&
         1U << run->unit_log == s->unit_pages;
}

static bool unit_exempt(const struct shape *s, uint32_t run, unsigned unit) {
  size_t page = first_page(run) + (size_t)unit * s->unit_pages;
  for (unsigned i = 0; i < s->unit_pages; i += s->k->span_pages)
    if (mu_mini_heap(page + i)->exempt) return true;
  return false;
}

/* The unit shows a mesh file that is to be emptied. */
static bool shows_victim(const struct shape *s, uint32_t r, unsigned unit) {
  struct mu_packed_place at = mu_unit_place(r, s->unit_pages, unit);
  if (!at.file || !mu_file_at(at.file)->victim) return false;
  return mu_file_at(at.file)->node == s->node && !unit_exempt(s, r, unit);
}

static bool prepare_unit(const struct run_pass *p, unsigned u) {
  const struct goal *g = &p->goals[u];
  return mu_pack_prepare(g->pack, (size_t)g->unit * p->s->unit_pages, pages_of_slots(p->s, bits_of(p, u)));
}

/* An anchor's units follow one another in one file: their pages are made together. */
static bool prepare_anchor(struct run_pass *p) {
  uint64_t pages = 0;
  const struct goal *first = NULL;
  unsigned skipped = 0;
  for (unsigned u = 0; u < p->s->units_per_run; u++) {
    if (!p->goals[u].pack) continue;
    if (!first) first = &p->goals[u], skipped = u;
    pages |= pages_of_slots(p->s, bits_of(p, u)) << ((u - skipped) * p->s->unit_pages);
  }
  return first && mu_pack_prepare(first->pack, (size_t)first->unit * p->s->unit_pages, pages);
}

/* Whether the next unit goes to the next place. */
static bool goes_along(const struct run_pass *p, unsigned unit) {
  const struct goal *g = &p->goals[unit];
  return g->pack && g[1].pack == g->pack && g[1].unit == g->unit + 1;
}

/* Units without a live slot stay if those that they were to go along with do. */
static void leave_lonely(struct run_pass *p) {
  for (unsigned u = 0, n; u < p->s->units_per_run; u += n) {
    bool live = false;
    for (n = 1; u + n < p->s->units_per_run && goes_along(p, u + n - 1);) n++;
    for (unsigned i = 0; i < n; i++) live |= population(bits_of(p, u + i), p->s->words) != 0;
    for (unsigned i = 0; i < n && !live; i++) p->goals[u + i].pack = NULL;
  }
}

static bool prepare_files(struct run_pass *p) {
  if (p->anchor && !prepare_anchor(p)) memset(p->goals, 0, sizeof p->goals);
  for (unsigned u = 0; u < p->s->units_per_run; u++) {
    struct goal *g = &p->goals[u];
    if (!g->pack) continue;
    bool free_there = disjoint(bits_of(p, u), packed_bits(g), p->s->words);
    if (!free_there) {
      mu_count(&mu_mesher_counters.refused_overlap, 1);
      MU_PROBE2(refused, unit_address(p->s, p->run, u), MU_REFUSED_OVERLAP);
    }
    if (!free_there || !(p->anchor || prepare_unit(p, u))) g->pack = NULL;
  }
  if (!p->anchor) leave_lonely(p);
  return true;
}

static bool close_run(struct run_pass *p) {
  const struct shape *s = p->s;
  if (!worth_closing(s, p->run) || !mu_run_thicken(p->run)) return false;
  p->mixed = mu_arena.runs[p->run].meshed;
  mu_run_close(p->run);
  read_bits(s, p->run, p->bits);
  for (unsigned u = 0; u < s->units_per_run; u++)
    if (p->goals[u].pack && unit_excluded(s, p->run, u)) {
      p->goals[u].pack = NULL;
      if (mu_unit_place(p->run, s->unit_pages, u).file) continue;
      mu_count(&mu_mesher_counters.refused_exempt, 1);
      MU_PROBE2(refused, unit_address(s, p->run, u), MU_REFUSED_EXEMPT);
    }
  return true;
}

/* A meshed run has no slots to claim but in its open units: it is held as it is. */
static bool hold_run(struct run_pass *p) {
  const struct shape *s = p->s;
  if (!worth_holding(s, p->run) || !mu_run_thicken(p->run)) return false;
  p->mixed = true;
  mu_run_hold(p->run);
  read_bits(s, p->run, p->bits);
  for (unsigned u = 0; u < s->units_per_run; u++) {
    bool meshed = mu_unit_place(p->run, s->unit_pages, u).file != 0, victim = meshed && shows_victim(s, p->run, u);
    bool live = population(bits_of(p, u), s->words) != 0;
    if (live ? !victim : !meshed) p->goals[u].pack = NULL;
    if (victim && !live) p->dead |= (uint64_t)1 << u;
  }
  return true;
}

/* Everything that can fail comes before any memory is touched. */
static bool prepare(struct run_pass *p) {
  mu_class_lock(p->s->size_class);
  bool fine = p->again ? hold_run(p) : close_run(p);
  mu_class_unlock(p->s->size_class);
  return fine && prepare_files(p);
}

/* The bytes of live slots go to the same offsets of the packed unit; pages that were never there are not read. */
static void copy_live(const struct shape *s, const uint64_t *bits, char *to, const char *from, uint64_t present) {
  FOR_EACH_SLOT(s, bits, offset) {
    size_t end = offset + s->k->size;
    for (size_t at = offset, stop; at < end; at = stop) {
      stop = mu_min(end, mu_round_down(at, mu_arena.page_size) + mu_arena.page_size);
      if (present >> (at >> mu_arena.page_shift) & 1) memcpy(to + at, from + at, stop - at);
    }
  }
}

static void mark_written(const struct shape *s, const struct goal *g, const uint64_t *bits) {
  uint64_t *packed = packed_bits(g);
  for (unsigned i = 0; i < g->pack->words; i++) packed[i] |= bits[i];
  g->pack->live[g->unit] = population(packed, g->pack->words);
  mu_file_at(g->pack->number)->once_live += population(bits, g->pack->words);
  mu_pack_note_used(g->pack, (size_t)g->unit * s->unit_pages, pages_of_slots(s, bits));
}

/* The units of a run that one barrier closes: [first, first + n). */
struct window {
  unsigned first, n;
};

static uint64_t unit_pages_of(const struct run_pass *p, const struct window *w, unsigned unit, uint64_t pages) {
  unsigned size = p->s->unit_pages;
  return pages >> ((unit - w->first) * size) & (((uint64_t)1 << size) - 1);
}

/* Wins the unit and writes its objects to their new place. */
static bool pack_unit(struct run_pass *p, const struct window *w, unsigned unit) {
  struct goal *g = &p->goals[unit];
  const uint64_t *bits = bits_of(p, unit);
  /* Goals of one run may share a packed unit: one of this pass may have taken these slots by now. */
  if (!g->pack || !disjoint(bits, packed_bits(g), g->pack->words)) return false;
  if (!mu_barrier_claim(unit - w->first)) {
    p->faulted = true;
    mu_count(&mu_mesher_counters.refused_busy, 1);
    MU_PROBE2(refused, unit_address(p->s, p->run, unit), MU_REFUSED_BUSY);
    return false;
  }
  char *to = g->pack->file.window + (((size_t)g->unit * p->s->unit_pages) << mu_arena.page_shift);
  copy_live(p->s, bits, to, mu_barrier_contents(unit - w->first), unit_pages_of(p, w, unit, mu_barrier_present()));
  mark_written(p->s, g, bits);
  return true;
}

/* Maps n units, from `unit` on, onto neighbouring places. */
static void remap(struct run_pass *p, const struct window *w, unsigned unit, unsigned n) {
  const struct goal *g = &p->goals[unit];
  uint64_t offset = ((uint64_t)g->unit * p->s->unit_pages) << mu_arena.page_shift;
  const void *address = unit_address(p->s, p->run, unit);
  if (mu_barrier_remap(unit - w->first, n, g->pack->file.fd, offset)) {
    p->done |= (n == 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1) << unit;
    MU_PROBE3(meshed, address, n * p->s->unit_pages, g->pack->number);
  } else {
    mu_count(&mu_mesher_counters.refused_mappings, 1);
    MU_PROBE2(refused, address, MU_REFUSED_MAPPING);
  }
}

/* Packs and maps those of `units` from `unit` on that go to neighbouring places: one mapping, at once, since whoever
 * touches them waits for it. Returns how many were packed. */
static unsigned pack_stretch(struct run_pass *p, const struct window *w, unsigned unit, uint64_t units) {
  unsigned n = 0;
  while ((units >> (unit + n) & 1) && pack_unit(p, w, unit + n)) {
    n++;
    if (unit + n == w->first + w->n || !goes_along(p, unit + n - 1)) break;
  }
  if (n) remap(p, w, unit, n);
  return n;
}

static uint64_t wanted(const struct run_pass *p, const struct window *w) {
  uint64_t units = 0;
  for (unsigned u = w->first; u < w->first + w->n; u++)
    if (p->goals[u].pack) units |= (uint64_t)1 << u;
  return units;
}

static uint64_t pages_of(const struct run_pass *p, const struct window *w, uint64_t units) {
  uint64_t pages = 0, one = ((uint64_t)1 << p->s->unit_pages) - 1;
  for (units >>= w->first; units; units &= units - 1)
    pages |= one << ((unsigned)__builtin_ctzll(units) * p->s->unit_pages);
  return pages;
}

/* Units of which the kernel would not give up a page stay. */
static uint64_t without_refused(const struct run_pass *p, const struct window *w, uint64_t units, uint64_t refused) {
  for (unsigned u = w->first; u < w->first + w->n; u++)
    if (unit_pages_of(p, w, u, refused)) {
      units &= ~((uint64_t)1 << u);
      mu_count(&mu_mesher_counters.refused_shared, 1);
      MU_PROBE2(refused, unit_address(p->s, p->run, u), MU_REFUSED_SHARED);
    }
  return units;
}

static void note_duration(uint64_t ns) {
  mu_count(&mu_mesher_counters.pass_ns, ns);
  if (ns > atomic_load_explicit(&mu_mesher_counters.longest_pass_ns, memory_order_relaxed))
    atomic_store_explicit(&mu_mesher_counters.longest_pass_ns, ns, memory_order_relaxed);
}

/* ---- how much one barrier closes -----------------------------------------------------------------------------------
 */

/* How long a barrier was closed lately: what it takes whatever it closes, and for each unit more. Four of five were
 * faster: an estimate goes up by an eighth of itself when one took longer, down by a 32nd when not, so that one during
 * which the mesher lost its processor counts as one. */
struct speed {
  uint64_t fixed_ns, unit_ns;
};

struct times {
  uint64_t began, closed, packed, opened;
};

enum { ANCHORS, JOINS, AGAIN, KINDS, UNIT_SIZES = 6 };
static struct speed speeds[KINDS][UNIT_SIZES];

static struct speed *speed_of(const struct run_pass *p) {
  unsigned size = p->s->unit_pages, kind = p->again ? AGAIN : p->anchor ? ANCHORS : JOINS;
  struct speed *v = &speeds[kind][mu_log2(size)];
  if (!v->unit_ns) *v = (struct speed){FIRST_FIXED_NS, FIRST_PAGE_NS * size};
  return v;
}

static void learn(uint64_t *estimate, uint64_t ns) {
  *estimate = ns > *estimate ? *estimate + *estimate / 8 + 1 : *estimate - *estimate / 32;
}

static void note_speed(const struct run_pass *p, const struct times *t, unsigned units) {
  struct speed *v = speed_of(p);
  learn(&v->fixed_ns, t->closed - t->began + (t->opened - t->packed));
  learn(&v->unit_ns, (t->packed - t->closed) / units);
}

/* How many units fit into the pause budget; one at least. */
static unsigned window_units(const struct run_pass *p) {
  const struct speed *v = speed_of(p);
  uint64_t budget = mu_options.pause_us * 1000ULL;
  uint64_t units = budget > v->fixed_ns ? (budget - v->fixed_ns) / mu_max(v->unit_ns, 1) : 0;
  return (unsigned)mu_max(mu_min(units, p->s->units_per_run), 1);
}

/* Who has used up his time slice loses the processor next: better before a barrier is closed than while it is. */
static void renew_slice(void) {
  static uint64_t since;
  uint64_t now = mu_thread_cpu_ns();
  if (now - since < FRESH_SLICE_NS) return;
  mu_sys_call(MU_SYS_sched_yield, 0, 0, 0, 0, 0, 0);
  since = now;
}

static void mesh_window(struct run_pass *p, const struct window *w) {
  unsigned size = p->s->unit_pages, pages = w->n * size;
  void *start = mu_page_address(first_page(p->run) + (size_t)w->first * size);
  uint64_t units = wanted(p, w), refused;
  unsigned packed = 0;
  if (!units) return;
  mu_huge_divide(start, (size_t)pages << mu_arena.page_shift);
  renew_slice();
  mu_lock_take(&mu_gate);
  struct times times = {.began = mu_now_ns()};
  if (mu_barrier_close(p->again ? MU_MESH_FILE : MU_ANONYMOUS, start, pages, size, pages_of(p, w, units), &refused) <
      0) {
    mu_lock_release(&mu_gate);
    return;
  }
  times.closed = mu_now_ns();
  units = without_refused(p, w, units, refused);
  uint64_t before = p->done;
  for (unsigned u = w->first, n; u < w->first + w->n; u += n ? n : 1) packed += n = pack_stretch(p, w, u, units);
  times.packed = mu_now_ns();
  for (uint64_t left = p->anchor ? 0 : p->done & ~before; left; left &= left - 1)
    p->saved +=
        (size_t)__builtin_popcountll(unit_pages_of(p, w, (unsigned)__builtin_ctzll(left), mu_barrier_present()));
  mu_barrier_open();
  times.opened = mu_now_ns();
  mu_lock_release(&mu_gate);
  uint64_t ns = times.opened - times.began;
  note_duration(ns);
  MU_PROBE4(pass, start, pages, ns, __builtin_popcountll(p->done & units));
  if (packed) note_speed(p, &times, packed);
}

static void settle(struct run_pass *p) {
  const struct shape *s = p->s;
  struct mu_packed_place where[MU_RUN_PAGES];
  for (unsigned u = 0; u < s->units_per_run; u++)
    if (p->done >> u & 1) where[u] = (struct mu_packed_place){p->goals[u].pack->number, p->goals[u].unit};
  struct mu_run *run = &mu_arena.runs[p->run];
  mu_class_lock(s->size_class);
  if (p->faulted) {
    run->failures = (uint8_t)mu_min(run->failures + 1U, MAX_FAILURES);
    run->not_before = atomic_load_explicit(&mu_tick, memory_order_relaxed) + ((uint32_t)BACKOFF_TICKS << run->failures);
  }
  mu_run_settle(p->run, s->unit_pages, p->done, p->dead & ~p->done, where);
  mu_class_unlock(s->size_class);
}

static void count_meshed(const struct run_pass *p) {
  mu_count(&mu_mesher_counters.passes, 1);
  if (p->anchor || p->again) return;
  unsigned units = 0;
  for (uint64_t left = p->done; left; left &= left - 1)
    units += population(bits_of(p, (unsigned)__builtin_ctzll(left)), p->s->words) != 0;
  mu_count(&mu_mesher_counters.meshes, units);
  mu_count(&mu_mesher_counters.meshed_pages, (uint64_t)units * p->s->unit_pages);
  uint64_t now = mu_meshed_pages_now();
  if (now > atomic_load_explicit(&mu_mesher_counters.meshed_pages_hwm, memory_order_relaxed))
    atomic_store_explicit(&mu_mesher_counters.meshed_pages_hwm, now, memory_order_relaxed);
}

enum { MIN_POPULATE = 4 }; /* pages: below it, an operation costs more than the minor faults that it saves */

static uint64_t live_pages(const struct run_pass *p) {
  uint64_t pages = 0;
  for (uint64_t left = p->done; left; left &= left - 1) {
    unsigned u = (unsigned)__builtin_ctzll(left);
    pages |= pages_of_slots(p->s, bits_of(p, u)) << (u * p->s->unit_pages);
  }
  return pages;
}

/* Remapped pages with live objects are mapped in the background. No others: reading a hole of a file would fill it. */
static void populate(const struct run_pass *p) {
  uint64_t pages = live_pages(p);
  while (pages) {
    unsigned from = (unsigned)__builtin_ctzll(pages), n = 0;
    for (; from + n < 64 && (pages >> (from + n) & 1); n++) pages &= ~((uint64_t)1 << (from + n));
    if (n >= MIN_POPULATE) mu_populate(mu_page_address(first_page(p->run) + from), (size_t)n << mu_arena.page_shift);
  }
}

static void make_exclusive(uint32_t r) {
  uint32_t forks = atomic_load_explicit(&mu_forks, memory_order_relaxed);
  struct mu_run *run = &mu_arena.runs[r];
  if (mu_engine_tier() == MU_TIER_FULL && run->forks != forks &&
      mu_make_exclusive(mu_page_address(first_page(r)), MU_RUN_PAGES))
    run->forks = forks;
}

/* What lies between units that go has another backing, maybe. */
static unsigned next_window(const struct run_pass *p, unsigned from, unsigned most) {
  unsigned n = 1;
  bool goes = p->goals[from].pack != NULL;
  while (n < most && from + n < p->s->units_per_run && (!p->mixed || (p->goals[from + n].pack != NULL) == goes)) n++;
  return n;
}

/* Returns pages saved. */
static size_t mesh_run(struct run_pass *p) {
  const struct shape *s = p->s;
  p->done = p->dead = 0;
  p->saved = 0;
  p->faulted = false;
  lock_behind_others();
  if (!mu_pass_paused() && prepare(p)) {
    unsigned most = window_units(p);
    for (struct window w = {0, 0}; w.first < s->units_per_run; w.first += w.n) {
      w.n = next_window(p, w.first, most);
      mesh_window(p, &w);
    }
    settle(p);
    populate(p);
    count_meshed(p);
  }
  mu_pass_unlock();
  return p->saved;
}

/* ---- a plan over many runs -----------------------------------------------------------------------------------------
 */

struct plan {
  struct shape s;
  bool again; /* of meshed runs: what shows victims */
  uint32_t count;
  uint32_t *runs; /* [count] run numbers */
  struct mu_mesh_search search;
  struct mu_pack **anchors; /* pack of each RUNS_PER_FILE anchor runs, in order */
  uint32_t runs_per_file;
  struct mu_pack *loners; /* again: for units that join nobody */
  uint64_t victim_pages;  /* again: memory of the files that are to be emptied */
  char *memory;
  size_t bytes;
};

static void *take(char **at, size_t bytes) {
  void *p = *at;
  *at += mu_round_up(bytes, 64);
  return p;
}

static bool takes(const struct mu_pack *k, const struct shape *s) {
  return k->size_class == s->size_class && k->unit_pages == s->unit_pages && k->node == s->node;
}

static uint32_t count_targets(const struct shape *s) {
  uint32_t n = 0;
  for (const struct mu_pack *k = mu_packs; k; k = k->next)
    if (takes(k, s)) n += k->founded;
  return n;
}

static bool plan_allocate(struct plan *p) {
  size_t units = (size_t)p->count * p->s.units_per_run, all = count_targets(&p->s) + units, words = p->s.words;
  size_t rows = mu_room_index_words((uint32_t)all, p->s.words);
  p->bytes = (units + all) * words * 8 + units * 20 + all * 4 + rows * 8 + p->count * 32UL + 18 * 64;
  p->memory = mu_scratch_alloc(p->bytes);
  if (!p->memory) return false;
  char *at = p->memory;
  uint32_t *runs = p->runs;
  p->search = (struct mu_mesh_search){.runs = p->count,
                                      .units_per_run = p->s.units_per_run,
                                      .words = p->s.words,
                                      .unit_pages = p->s.unit_pages,
                                      .probes = MOST_PROBES,
                                      .seed = mu_now_ns() | 1,
                                      .min_pages_per_join = 1};
  struct mu_mesh_search *q = &p->search;
  q->live = take(&at, units * words * 8);
  q->packed = take(&at, all * words * 8);
  q->rows = take(&at, rows * 8);
  q->empty = take(&at, p->count * 8UL);
  q->pages = take(&at, units * 4);
  q->choice = take(&at, units * 4);
  q->order = take(&at, units * 4);
  q->work = take(&at, units * 4);
  q->packed_live = take(&at, all * 4);
  q->anchor_base = take(&at, p->count * 4UL);
  p->anchors = take(&at, p->count * 8UL);
  q->role = take(&at, p->count);
  p->runs = take(&at, p->count * 4UL);
  memcpy(p->runs, runs, p->count * 4UL);
  return true;
}

/* Targets are numbered pack by pack, in the order of the list. */
static void offer_targets(struct plan *p) {
  struct mu_mesh_search *q = &p->search;
  for (const struct mu_pack *k = mu_packs; k; k = k->next) {
    if (!takes(k, &p->s)) continue;
    memcpy(q->packed + (size_t)q->targets * q->words, k->bits, (size_t)k->founded * q->words * 8);
    memcpy(q->packed_live + q->targets, k->live, k->founded * 4UL);
    q->targets += k->founded;
  }
}

/* What shows a victim is offered; its share of the victim's memory is what it takes up now. */
static void offer_again(struct plan *p) {
  struct mu_mesh_search *q = &p->search;
  uint64_t *live = (uint64_t *)(uintptr_t)q->live, *empty = (uint64_t *)(uintptr_t)q->empty;
  uint32_t *pages = (uint32_t *)(uintptr_t)q->pages;
  unsigned upr = p->s.units_per_run;
  for (uint32_t i = 0; i < p->count; i++) {
    uint64_t *bits = live + (size_t)i * upr * q->words;
    mu_class_lock(p->s.size_class);
    bool fine = worth_holding(&p->s, p->runs[i]);
    if (fine) read_bits(&p->s, p->runs[i], bits);
    for (unsigned u = 0; fine && u < upr; u++) {
      uint64_t *unit = bits + (size_t)u * q->words;
      bool meshed = mu_unit_place(p->runs[i], p->s.unit_pages, u).file != 0;
      if (meshed && !population(unit, q->words)) empty[i] |= (uint64_t)1 << u;
      if (!shows_victim(&p->s, p->runs[i], u)) memset(unit, 0, q->words * sizeof *unit);
    }
    mu_class_unlock(p->s.size_class);
    for (unsigned u = 0; u < upr; u++)
      pages[i * upr + u] = (uint32_t)__builtin_popcountll(pages_of_slots(&p->s, bits + (size_t)u * q->words));
  }
}

static uint64_t pages_of_unit(const struct plan *p, unsigned unit) {
  unsigned size = p->s.unit_pages;
  return (size == 64 ? ~(uint64_t)0 : ((uint64_t)1 << size) - 1) << (unit * size);
}

static uint64_t private_pages(const struct plan *p, uint32_t run) {
  uint64_t pages = 0;
  for (unsigned u = 0; u < p->s.units_per_run; u++)
    if (!mu_unit_place(run, p->s.unit_pages, u).file) pages |= pages_of_unit(p, u);
  return pages;
}

/* Private spans without a live slot, which can be closed with the others. */
static bool unit_is_empty(const struct shape *s, uint32_t r, unsigned unit) {
  size_t page = first_page(r) + (size_t)unit * s->unit_pages;
  for (unsigned i = 0; i < s->unit_pages; i += s->k->span_pages)
    if (mu_mini_heap(page + i)->state != MU_SPAN_OPEN || mu_mini_heap(page + i)->live) return false;
  return true;
}

/* Meshed units of the run are not offered again. One that is too full may be part of an anchor, but joins nobody. */
static void offer_run(struct plan *p, uint32_t i, uint64_t present, uint64_t movable) {
  struct mu_mesh_search *q = &p->search;
  unsigned upr = p->s.units_per_run, most = most_live(p->s.size_class, p->s.unit_pages);
  uint64_t *bits = (uint64_t *)(uintptr_t)q->live + (size_t)i * upr * q->words;
  uint32_t *pages = (uint32_t *)(uintptr_t)q->pages + i * upr;
  if (!worth_closing(&p->s, p->runs[i])) return;
  uint64_t private = private_pages(p, p->runs[i]);
  /* What the kernel would not move is not offered: shared with a child, for the most part. */
  if (mu_engine_tier() == MU_TIER_FULL && (present & ~movable & private)) {
    mu_count(&mu_mesher_counters.refused_shared, upr);
    return;
  }
  read_bits(&p->s, p->runs[i], bits);
  for (unsigned u = 0; u < upr; u++) {
    uint64_t *unit = bits + (size_t)u * q->words;
    if (!(private & pages_of_unit(p, u))) memset(unit, 0, q->words * sizeof *unit);
    if (population(unit, q->words) <= most)
      pages[u] = (uint32_t)__builtin_popcountll(present & private & pages_of_unit(p, u));
    if (unit_is_empty(&p->s, p->runs[i], u)) ((uint64_t *)(uintptr_t)q->empty)[i] |= (uint64_t)1 << u;
  }
}

static void offer_runs(struct plan *p) {
  for (uint32_t i = 0; i < p->count; i++) {
    uint64_t present, movable;
    make_exclusive(p->runs[i]);
    if (mu_resident(mu_page_address(first_page(p->runs[i])), MU_RUN_PAGES, &present, &movable) < 0) continue;
    mu_class_lock(p->s.size_class);
    offer_run(p, i, present, movable);
    mu_class_unlock(p->s.size_class);
  }
}

static struct goal goal_of(const struct plan *p, uint32_t number) {
  const struct mu_mesh_search *q = &p->search;
  if (number >= q->targets) {
    uint32_t unit = number - q->targets, per_file = p->runs_per_file * p->s.units_per_run;
    return (struct goal){p->anchors[unit / per_file], unit % per_file};
  }
  for (struct mu_pack *k = mu_packs; k; k = k->next) {
    /* Packs of this plan's own anchors come first in the list; targets were numbered without them. */
    bool own = k == p->loners;
    for (uint32_t i = 0; i * p->runs_per_file * p->s.units_per_run < q->founded; i++) own |= p->anchors[i] == k;
    if (own || !takes(k, &p->s)) continue;
    if (number < k->founded) return (struct goal){k, number};
    number -= k->founded;
  }
  return (struct goal){NULL, 0};
}

enum { MAX_PLAN_FILES = MU_MAX_PLAN_FILES - 1 }; /* and one for loners */

static bool found_files(struct plan *p) {
  uint32_t upr = p->s.units_per_run, runs = p->search.founded / upr;
  p->runs_per_file = (uint32_t)mu_max(RUNS_PER_FILE, (runs + MAX_PLAN_FILES - 1) / MAX_PLAN_FILES);
  for (uint32_t i = 0; i * p->runs_per_file < runs; i++) {
    uint32_t n = (uint32_t)mu_min(p->runs_per_file, runs - i * p->runs_per_file);
    p->anchors[i] = mu_pack_create(p->s.size_class, p->s.unit_pages, p->s.words, n * upr);
    if (!p->anchors[i]) return false;
    mu_pack_set_node(p->anchors[i], p->s.node);
  }
  return true;
}

static void set_goals(const struct plan *p, struct run_pass *pass, uint32_t i) {
  const struct mu_mesh_search *q = &p->search;
  unsigned upr = p->s.units_per_run;
  for (unsigned u = 0; u < upr; u++) {
    uint32_t choice = pass->anchor                 ? q->anchor_base[i] + u
                      : q->role[i] == MU_RUN_STAYS ? (uint32_t)MU_UNIT_STAYS
                                                   : q->choice[i * upr + u];
    pass->goals[u] = choice == MU_UNIT_STAYS ? (struct goal){NULL, 0} : goal_of(p, choice);
    /* What was to be an anchor and never became one has nothing written: joining it would save nothing. */
    bool empty = q->empty[i] >> u & 1;
    if (!pass->anchor && !empty && pass->goals[u].pack && pass->goals[u].pack->live[pass->goals[u].unit] == 0)
      pass->goals[u].pack = NULL;
  }
}

static void note_founded(const struct run_pass *pass) {
  for (unsigned u = 0; u < pass->s->units_per_run; u++) {
    const struct goal *g = &pass->goals[u];
    if (g->pack && g->unit + 1 > g->pack->founded) g->pack->founded = g->unit + 1;
  }
}

static bool out_of_time(const struct mu_pass_policy *policy) {
  return policy->deadline_ns && mu_thread_cpu_ns() > policy->deadline_ns;
}

/* The file pages of the next anchor run are made while this one is packed. */
static void prepare_next(const struct plan *p, uint32_t i) {
  const struct mu_mesh_search *q = &p->search;
  for (i++; i < p->count && q->role[i] != MU_RUN_ANCHOR; i++) {
  }
  if (i >= p->count) return;
  uint64_t pages = 0;
  unsigned upr = p->s.units_per_run;
  for (unsigned u = 0; u < upr; u++)
    pages |= pages_of_slots(&p->s, q->live + ((size_t)i * upr + u) * q->words) << (u * p->s.unit_pages);
  struct goal g = goal_of(p, q->anchor_base[i]);
  if (g.pack) mu_pack_prepare_ahead(g.pack, (size_t)g.unit * p->s.unit_pages, pages);
}

static void carry_out_run(struct plan *p, struct run_pass *pass, uint32_t i) {
  pass->run = p->runs[i];
  pass->anchor = p->search.role[i] == MU_RUN_ANCHOR;
  set_goals(p, pass, i);
}

static size_t carry_out(struct plan *p, const struct mu_pass_policy *policy) {
  static struct run_pass pass; /* one mesher, one pass at a time */
  uint64_t bits[MU_RUN_PAGES * 8];
  size_t saved = 0, words = (size_t)p->s.words * p->s.units_per_run;
  pass.s = &p->s;
  pass.again = false;
  pass.bits = words <= sizeof bits / 8 ? bits : mu_scratch_alloc(words * 8);
  bool ready = pass.bits && found_files(p);
  for (int anchors = ready ? 1 : -1; anchors >= 0; anchors--)
    for (uint32_t i = 0; i < p->count && !out_of_time(policy); i++) {
      if (p->search.role[i] != (anchors ? MU_RUN_ANCHOR : MU_RUN_EVACUATED)) continue;
      if (!mappings_left(p->s.units_per_run)) break;
      if (!policy->may_go_on()) break;
      carry_out_run(p, &pass, i);
      if (anchors) prepare_next(p, i);
      saved += mesh_run(&pass);
      if (anchors) note_founded(&pass);
    }
  if (pass.bits != bits) mu_scratch_free(pass.bits, words * 8);
  mu_packs_unmake_unused();
  mu_packs_seal_unused();
  return saved;
}

/* ---- meshing again
 * --------------------------------------------------------------------------------------------------- */

/* Pages that the plan needs in new files: of anchors, and of units that join nobody. Those get packed units of their
 * own: a victim's memory goes only when all have left it. */
static uint64_t pages_needed(const struct plan *p, uint32_t *loners) {
  const struct mu_mesh_search *q = &p->search;
  unsigned upr = p->s.units_per_run;
  uint64_t pages = 0;
  *loners = 0;
  for (uint32_t unit = 0; unit < p->count * upr; unit++) {
    bool anchor = q->role[unit / upr] == MU_RUN_ANCHOR,
         stays = q->role[unit / upr] == MU_RUN_STAYS || q->choice[unit] == MU_UNIT_STAYS;
    if (!anchor && !stays) continue;
    pages += q->pages[unit];
    *loners += !anchor && q->pages[unit];
  }
  return pages;
}

/* Mappings that the runs need now, and as planned. Units that go nowhere count as one with their neighbours. */
struct mappings {
  uint64_t now, then;
};

static struct mappings count_mappings(const struct plan *p) {
  const struct mu_mesh_search *q = &p->search;
  unsigned upr = p->s.units_per_run;
  struct mappings m = {0, 0};
  for (uint32_t i = 0; i < p->count; i++) {
    m.now += mu_arena.runs[p->runs[i]].mappings;
    m.then++;
    for (unsigned u = 1; q->role[i] != MU_RUN_ANCHOR && u < upr; u++) {
      uint32_t before = q->choice[i * upr + u - 1], at = q->choice[i * upr + u];
      m.then += before == MU_UNIT_STAYS ? at != MU_UNIT_STAYS : at != before + 1;
    }
  }
  return m;
}

/* What is packed anew must pay: memory of the victims, and what the kernel takes for mappings. */
static bool pays_again(const struct plan *p, uint64_t need, const struct mu_pass_policy *policy) {
  struct mappings m = count_mappings(p);
  uint64_t cost = (need + policy->min_pages) << mu_arena.page_shift, gain = p->victim_pages << mu_arena.page_shift;
  return gain + m.now * MAPPING_BYTES >= cost + m.then * MAPPING_BYTES;
}

/* Units of the run that join nobody go to the pack of loners. */
static void set_loners(struct run_pass *pass, const struct plan *p, uint32_t i, struct mu_pack *loners) {
  unsigned upr = p->s.units_per_run;
  for (unsigned u = 0; u < upr && loners; u++)
    if (!pass->goals[u].pack && p->search.pages[i * upr + u] && loners->founded < loners->units)
      pass->goals[u] = (struct goal){loners, loners->founded++};
}

static size_t carry_out_again(struct plan *p, const struct mu_pass_policy *policy) {
  static struct run_pass pass;
  uint32_t lone;
  uint64_t need = pages_needed(p, &lone);
  size_t words = (size_t)p->s.words * p->s.units_per_run;
  if (!pays_again(p, need, policy)) return 0;
  uint64_t before = mu_file_bytes();
  p->loners = lone ? mu_pack_create(p->s.size_class, p->s.unit_pages, p->s.words, lone) : NULL;
  if (p->loners) mu_pack_set_node(p->loners, p->s.node);
  pass.s = &p->s;
  pass.again = true;
  pass.bits = mu_scratch_alloc(words * 8);
  bool ready = pass.bits && (!lone || p->loners) && found_files(p);
  for (int anchors = ready ? 1 : -1; anchors >= 0; anchors--)
    for (uint32_t i = 0; i < p->count && !out_of_time(policy); i++) {
      if ((p->search.role[i] == MU_RUN_ANCHOR) != anchors || !mappings_left(p->s.units_per_run)) continue;
      if (!policy->may_go_on()) break;
      carry_out_run(p, &pass, i);
      if (!anchors) set_loners(&pass, p, i, p->loners);
      mesh_run(&pass);
      if (anchors) note_founded(&pass);
    }
  mu_scratch_free(pass.bits, words * 8);
  mu_packs_unmake_unused();
  mu_packs_seal_unused();
  uint64_t after = mu_file_bytes();
  return before > after ? (before - after) >> mu_arena.page_shift : 0;
}

/* What a plan has no use for is tried again later and later; of what is meshed now, what stayed private. */
static void back_off(const struct plan *p, bool carried_out) {
  uint32_t tick = atomic_load_explicit(&mu_tick, memory_order_relaxed);
  mu_class_lock(p->s.size_class);
  for (uint32_t i = 0; i < p->count; i++) {
    struct mu_run *run = &mu_arena.runs[p->runs[i]];
    bool stays = !carried_out || p->search.role[i] == MU_RUN_STAYS || run->meshed;
    if (!stays || !worth_closing(&p->s, p->runs[i])) continue;
    run->not_before = tick + ((uint32_t)BACKOFF_TICKS << run->failures);
    run->failures = (uint8_t)mu_min(run->failures + 1U, MAX_FAILURES);
  }
  mu_class_unlock(p->s.size_class);
}

/* The mean of those offered. */
static uint64_t pages_of_a_run(const struct plan *p) {
  uint64_t pages = 0;
  for (uint32_t unit = 0; unit < p->count * p->s.units_per_run; unit++) pages += p->search.pages[unit];
  return pages / p->count;
}

static size_t mesh_group(const struct shape *s, uint32_t *runs, uint32_t count, uint64_t victim_pages,
                         const struct mu_pass_policy *policy) {
  bool again = victim_pages != 0;
  struct plan p = {.s = *s, .again = again, .victim_pages = victim_pages, .count = count, .runs = runs};
  size_t saved = 0;
  if (!plan_allocate(&p)) return 0;
  mu_packs_begin_plan(s->size_class, s->unit_pages);
  offer_targets(&p);
  again ? offer_again(&p) : offer_runs(&p);
  p.search.min_pages_per_anchor = (uint32_t)mu_min(policy->min_pages, pages_of_a_run(&p) / ANCHOR_GAIN);
  mu_mesh_search(&p.search);
  if (again)
    saved = carry_out_again(&p, policy);
  else if (p.search.pages_saved >= policy->min_pages)
    saved = carry_out(&p, policy);
  if (!again) back_off(&p, saved != 0);
  mu_packs_end_plan();
  mu_scratch_free(p.memory, p.bytes);
  return saved;
}

/* ---- which runs, in which units ------------------------------------------------------------------------------------
 */

/*
 * Larger units take fewer mappings, but pack less well. Simulated over sparse heaps, packed units take 1.04 times the
 * room that their live slots would fill while units have up to two of them, 0.09 times more for each further one, and a
 * twenty-fifth more at each doubling of the unit. Units that hold something take 0.4 mappings each, as neighbours go
 * together, and 0.05 more at each doubling; those between them that hold nothing take none.
 * What both come to is least for some unit; where mappings are short, each counts for more, twice as much at a time.
 */
enum { PRICES = 11 };
static uint32_t mapping_price = MAPPING_BYTES;

static double mappings_of_unit(double live, unsigned pages) {
  return (0.4 + 0.05 * mu_log2(pages)) * live / (0.6 + live);
}

/* Of one page, when `share` of its slots are live, `live` in a unit of so many pages. */
static double cost_of_unit(double share, double live, unsigned pages, double price) {
  double room = (live <= 2 ? 1.04 : 1.04 + (live - 2) * 0.09) * (1 + 0.04 * mu_log2(pages));
  return share * room * (double)mu_arena.page_size + price * mappings_of_unit(live, pages) / pages;
}

/* Spans of a run that are private and not too full to mesh, and their live slots. */
struct hopeful {
  uint32_t spans, live;
};

static struct hopeful hopeful_spans(unsigned c, uint32_t r) {
  struct hopeful h = {0, 0};
  const struct mu_size_class *k = &mu_classes[c];
  unsigned most = most_live(c, k->span_pages);
  for (size_t page = first_page(r); page < first_page(r) + MU_RUN_PAGES; page += k->span_pages) {
    const struct mu_mini_heap *span = mu_mini_heap(page);
    if (span->state == MU_SPAN_MESHED || span->live > most) continue;
    h.spans++;
    h.live += span->live;
  }
  return h;
}

/* The unit of a run, in pages, when a mapping costs so much. 0: not enough of it would mesh. */
static unsigned unit_for(unsigned c, uint32_t r, uint32_t price) {
  const struct mu_size_class *k = &mu_classes[c];
  const struct mu_run *run = &mu_arena.runs[r];
  unsigned best = k->span_pages;
  struct hopeful h = {k->spans_per_run, run->live};
  bool thin = !run->meshed && run->live <= most_live(c, best) * k->spans_per_run / 2;
  if (!thin) h = hopeful_spans(c, r);
  if (!h.live || h.spans * HOPEFUL_SHARE < k->spans_per_run) return 0;
  if (run->meshed) return 1U << run->unit_log;
  double live = (double)h.live / h.spans, share = live / k->slots, least = cost_of_unit(share, live, best, price);
  for (unsigned pages = best * 2; pages <= MAX_UNIT_PAGES; pages *= 2) {
    double cost = cost_of_unit(share, live * pages / k->span_pages, pages, price);
    if (cost < least) least = cost, best = pages;
  }
  return best;
}

/* Live slots of a unit of that many pages, at the mean of the run. */
static double live_of_unit(uint32_t r, unsigned pages) {
  return (double)mu_arena.runs[r].live * pages / MU_RUN_PAGES;
}

/* Adds up the mappings that meshing all runs of a class would take, at each price. */
static void add_mappings_needed(unsigned c, uint64_t *needed) {
  mu_class_lock(c);
  for (uint32_t r = mu_class_heaps[c].runs; r; r = mu_arena.runs[r].next) {
    const struct mu_run *run = &mu_arena.runs[r];
    for (unsigned i = 0; i < PRICES && run->used && !run->meshed; i++) {
      unsigned pages = unit_for(c, r, (uint32_t)MAPPING_BYTES << i);
      needed[i] += pages ? (uint64_t)(MU_RUN_PAGES / pages * mappings_of_unit(live_of_unit(r, pages), pages)) + 1 : 0;
    }
  }
  mu_class_unlock(c);
}

void mu_pass_choose_units(void) {
  uint64_t needed[PRICES] = {0};
  unsigned i = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++)
    if (mu_classes[c].meshable) add_mappings_needed(c, needed);
  while (i < PRICES - 1 && !mappings_left(needed[i])) i++;
  mapping_price = (uint32_t)MAPPING_BYTES << i;
}

static bool is_candidate(unsigned c, uint32_t r, const struct mu_pass_policy *policy, uint32_t tick) {
  const struct mu_run *run = &mu_arena.runs[r];
  if (run->closed || !run->used || run->size_class != c) return false;
  if ((int32_t)(tick - run->stamp) < (int32_t)policy->quiet_ticks) return false;
  return policy->ignore_backoff || (int32_t)(tick - run->not_before) >= 0;
}

static uint32_t candidates(unsigned c, unsigned unit_pages, const struct mu_pass_policy *policy, uint32_t *runs,
                           uint32_t room) {
  uint32_t n = 0, tick = atomic_load_explicit(&mu_tick, memory_order_relaxed);
  mu_class_lock(c);
  for (uint32_t r = mu_class_heaps[c].runs; r && n < room; r = mu_arena.runs[r].next)
    if (is_candidate(c, r, policy, tick) && unit_for(c, r, mapping_price) == unit_pages) runs[n++] = r;
  mu_class_unlock(c);
  return n;
}

/* ---- node by node --------------------------------------------------------------------------------------------------
 */

/* The nodes there are and, where there is more than one, what is on a node that nobody knows. */
static unsigned node_numbers(void) {
  unsigned n = mu_numa_nodes();
  return n > 1 ? n + 1 : 1;
}

static unsigned nth_node(unsigned i) {
  return i == 0 || i < mu_numa_nodes() ? i : MU_NODE_UNKNOWN;
}

static unsigned node_of_run(uint32_t r) {
  uint64_t present, movable;
  if (mu_resident(mu_page_address(first_page(r)), MU_RUN_PAGES, &present, &movable) < 0) return MU_NODE_UNKNOWN;
  return mu_numa_node_of(r, present);
}

static size_t mesh_node(struct shape *s, uint32_t *runs, uint32_t n, const struct mu_pass_policy *policy) {
  return n > 1 || (n && count_targets(s)) ? mesh_group(s, runs, n, 0, policy) : 0;
}

/* Runs whose pages are on several nodes stay as they are. */
static size_t mesh_nodes(struct shape *s, uint32_t *runs, uint32_t n, const struct mu_pass_policy *policy) {
  if (mu_numa_nodes() == 1) return mesh_node(s, runs, n, policy);
  size_t saved = 0;
  uint32_t *there = mu_scratch_alloc(n * 5UL);
  uint8_t *node = (uint8_t *)(there + n);
  for (uint32_t i = 0; there && i < n; i++) node[i] = (uint8_t)node_of_run(runs[i]);
  for (unsigned k = 0; there && k < node_numbers(); k++) {
    uint32_t count = 0;
    s->node = nth_node(k);
    for (uint32_t i = 0; i < n; i++)
      if (node[i] == s->node) there[count++] = runs[i];
    saved += mesh_node(s, there, count, policy);
  }
  mu_scratch_free(there, n * 5UL);
  return saved;
}

/* ---- meshing again, by class --------------------------------------------------------------------------------------
 */

/* Counts the live slots of each of the class's files. */
static void count_file_live(unsigned c) {
  for (uint32_t n = 1; n < mu_file_top(); n++)
    if (mu_file_at(n)->size_class == c) mu_file_at(n)->live = 0;
  mu_class_lock(c);
  for (uint32_t r = mu_class_heaps[c].runs; r; r = mu_arena.runs[r].next) {
    const struct mu_run *run = &mu_arena.runs[r];
    if (!run->meshed) continue;
    for (size_t page = first_page(r); page < first_page(r) + MU_RUN_PAGES; page += mu_classes[c].span_pages) {
      const struct mu_mini_heap *span = mu_mini_heap(page);
      if (span->state == MU_SPAN_MESHED && span->live) mu_file_at(span->next)->live += span->live;
    }
  }
  mu_class_unlock(c);
}

/* Files of which less than half is live, and that have lost a third of what they held, are to be emptied. Returns
 * whether there are any. */
static bool choose_victims(unsigned c) {
  bool any = false;
  count_file_live(c);
  for (uint32_t n = 1; n < mu_file_top(); n++) {
    struct mu_file_record *r = mu_file_at(n);
    uint64_t held = atomic_load_explicit(&r->pages, memory_order_relaxed), live = r->live;
    r->victim = r->size_class == c && held && atomic_load_explicit(&r->refs, memory_order_relaxed) &&
                live * mu_classes[c].size * 2 < held << mu_arena.page_shift && live * 3 < (uint64_t)r->once_live * 2;
    any |= r->victim;
  }
  return any;
}

static uint64_t victim_pages(const struct shape *s) {
  uint64_t pages = 0;
  for (uint32_t n = 1; n < mu_file_top(); n++) {
    const struct mu_file_record *r = mu_file_at(n);
    if (r->victim && r->unit_pages == s->unit_pages && r->node == s->node)
      pages += atomic_load_explicit(&r->pages, memory_order_relaxed);
  }
  return pages;
}

static uint32_t runs_to_mesh_again(const struct shape *s, uint32_t *runs, uint32_t room) {
  uint32_t n = 0;
  mu_class_lock(s->size_class);
  for (uint32_t r = mu_class_heaps[s->size_class].runs; r && n < room; r = mu_arena.runs[r].next) {
    bool any = false;
    if (!worth_holding(s, r)) continue;
    for (unsigned u = 0; u < s->units_per_run && !any; u++) any = shows_victim(s, r, u);
    if (any) runs[n++] = r;
  }
  mu_class_unlock(s->size_class);
  return n;
}

/* What is still there did not pay, or was stored to and stays, until it has lost another third. */
static void note_tried(void) {
  for (uint32_t n = 1; n < mu_file_top(); n++) {
    struct mu_file_record *r = mu_file_at(n);
    if (r->victim && mu_file_units(r)) r->once_live = r->live;
  }
}

/* Objects that are left in thin files are packed together anew, and the files go. */
static size_t mesh_class_again(unsigned c, uint32_t *runs, uint32_t room, const struct mu_pass_policy *policy) {
  size_t saved = 0;
  if (!choose_victims(c)) return 0;
  mu_packs_seal_unused();
  for (unsigned unit = mu_classes[c].span_pages; unit <= MAX_UNIT_PAGES; unit *= 2) {
    struct shape s = shape_of(c, unit);
    for (unsigned i = 0; i < node_numbers(); i++) {
      s.node = nth_node(i);
      uint64_t pages = victim_pages(&s);
      if (pages < mu_max(policy->min_pages, MIN_VICTIM_PAGES)) continue;
      uint32_t n = runs_to_mesh_again(&s, runs, room);
      if (n) saved += mesh_group(&s, runs, n, pages, policy);
    }
  }
  note_tried();
  return saved;
}

/* Under the pass lock, as whatever the mesher changes: who waits for that finds nothing half changed. */
static void reap_runs(unsigned c) {
  mu_pass_lock();
  mu_reap_runs(c);
  mu_pass_unlock();
}

size_t mu_pass_class(unsigned c, const struct mu_pass_policy *policy) {
  const struct mu_size_class *k = &mu_classes[c];
  struct mu_class_heap *h = &mu_class_heaps[c];
  if (h->meshed_runs) reap_runs(c);
  mu_class_lock(c);
  uint32_t room = h->run_count;
  size_t free_slots = h->used_spans * k->slots - h->live_slots;
  mu_class_unlock(c);
  if (!k->meshable || class_excluded(k) || room < 2) return 0;
  if (!h->meshed_runs && free_slots * k->size < (size_t)policy->min_pages << mu_arena.page_shift) return 0;
  uint32_t *runs = mu_scratch_alloc(room * 4UL);
  size_t saved = 0;
  for (unsigned pages = k->span_pages; runs && pages <= MAX_UNIT_PAGES && !out_of_time(policy); pages *= 2) {
    uint32_t n = candidates(c, pages, policy, runs, room);
    struct shape s = shape_of(c, pages);
    saved += mesh_nodes(&s, runs, n, policy);
  }
  if (runs && h->meshed_runs && !out_of_time(policy)) saved += mesh_class_again(c, runs, room, policy);
  mu_scratch_free(runs, room * 4UL);
  return saved;
}
