/* SPDX-License-Identifier: Apache-2.0 */
#include "src/stats_page.h"
#include "src/global_heap.h"
#include "src/heap_layout.h"
#include "src/mesher.h"
#include "src/options.h"
#include "src/pass.h"
#include "src/stats.h"
#include "src/sys.h"
#include "uffd/engine.h"
#include <mesh-uffd-stats-page.h>
#include <string.h>

_Static_assert(MU_CLASSES - 1 <= MESH_UFFD_STATS_CLASSES, "a row for each class");
_Static_assert(sizeof mu_engine_counters.fault_ns / sizeof *mu_engine_counters.fault_ns == MESH_UFFD_STATS_LATENCIES,
               "one histogram");
_Static_assert(offsetof(struct mesh_uffd_stats_page, mapping_budget) == 56, "version 1");
_Static_assert(offsetof(struct mesh_uffd_stats_page, tier_reason) == 376, "version 1");
_Static_assert(offsetof(struct mesh_uffd_stats_page, classes) == 1144, "version 1");
_Static_assert(offsetof(struct mesh_uffd_stats_page, totals) == 7560, "version 1");

enum { DUE_NS = 100000000, SAMPLE_NS = 1000000000 };

/* Not static, for the note below; in memory that is not there until it is written. */
extern struct mesh_uffd_stats_page mu_stats_page;
struct mesh_uffd_stats_page mu_stats_page __attribute__((aligned(64), used));

/* How others find the page, in whatever object this ends up: its distance from the note. */
__asm__(".pushsection .note.mesh-uffd, \"a\", %note\n"
        ".balign 4\n"
        ".long 2f - 1f, 4f - 3f, 1\n" /* MESH_UFFD_STATS_NOTE */
        "1: .asciz \"mesh-uffd\"\n"   /* MESH_UFFD_STATS_OWNER */
        "2: .balign 4\n"
        "3: .quad mu_stats_page - 3b\n"
        "4: .balign 4\n"
        ".popsection\n");

static uint64_t get(const _Atomic uint64_t *counter) {
  return atomic_load_explicit(counter, memory_order_relaxed);
}

static _Atomic uint32_t *sequence(void) {
  return (_Atomic uint32_t *)(void *)&mu_stats_page.sequence;
}

/* One writer at a time: the mesher, or a forked child's first thread. A child may have been forked amid a writing. */
static void begin(void) {
  uint32_t now = atomic_load_explicit(sequence(), memory_order_relaxed);
  atomic_store_explicit(sequence(), now | 1, memory_order_relaxed);
  atomic_thread_fence(memory_order_release); /* who sees what follows sees that it is odd */
}

static void end(void) {
  uint32_t now = atomic_load_explicit(sequence(), memory_order_relaxed);
  atomic_store_explicit(sequence(), now + 1 ? now + 1 : 2, memory_order_release);
}

MU_RACY static uint64_t write_classes(struct mesh_uffd_stats_page *p) {
  uint64_t unused = atomic_load_explicit(&mu_dirty_pages, memory_order_relaxed);
  p->classes = MU_CLASSES - 1;
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    const struct mu_class_heap *h = &mu_class_heaps[c];
    const struct mu_size_class *k = &mu_classes[c];
    unused += (uint64_t)h->touched_empty * k->span_pages;
    p->class_rows[c - 1] = (struct mesh_uffd_class_stats){.size = k->size,
                                                          .span_pages = k->span_pages,
                                                          .slots = k->slots,
                                                          .meshed_runs = (uint32_t)h->meshed_runs,
                                                          .spans = h->used_spans,
                                                          .live_slots = h->live_slots,
                                                          .meshed_slots = h->meshed_slots,
                                                          .runs = h->run_count};
  }
  return unused << mu_arena.page_shift;
}

/* When all are used every second one is dropped: what is left spans the whole life of the process. */
static void sample(struct mesh_uffd_stats_page *p) {
  if (!p->sample_interval_ns) p->sample_interval_ns = SAMPLE_NS;
  if (p->samples && p->updated_ns - p->sample_rows[p->samples - 1].time_ns < p->sample_interval_ns) return;
  if (p->samples == MESH_UFFD_STATS_SAMPLES) {
    p->samples /= 2;
    p->sample_interval_ns *= 2;
    for (uint32_t i = 0; i < p->samples; i++) p->sample_rows[i] = p->sample_rows[2 * i];
  }
  p->sample_rows[p->samples++] = (struct mesh_uffd_sample){.time_ns = p->updated_ns,
                                                           .live_bytes = p->totals.live_bytes,
                                                           .span_bytes = p->totals.span_bytes,
                                                           .unused_bytes = p->unused_bytes,
                                                           .packed_bytes = p->totals.packed_bytes,
                                                           .meshed_pages = p->totals.meshed_pages,
                                                           .freed_bytes = p->totals.freed_bytes,
                                                           .passes = p->totals.passes};
}

static void write_head(struct mesh_uffd_stats_page *p) {
  memcpy(p->magic, MESH_UFFD_STATS_MAGIC, sizeof p->magic);
  p->version = MESH_UFFD_STATS_VERSION;
  p->size = sizeof *p;
  p->pid = (uint32_t)mu_pid();
  p->library = MESH_UFFD_VERSION_MAJOR << 16 | MESH_UFFD_VERSION_MINOR << 8 | MESH_UFFD_VERSION_PATCH;
  p->updated_ns = mu_now_ns();
  if (!p->started_ns) p->started_ns = p->updated_ns;
}

static void write_heap(struct mesh_uffd_stats_page *p) {
  p->heap_base = (uintptr_t)mu_arena.base;
  p->heap_pages = mu_arena_limit();
  p->heap_runs = (uintptr_t)mu_arena.runs;
  p->heap_extents = (uintptr_t)mu_arena.extents;
  p->heap_layout = mu_heap_layout();
}

static void write_figures(struct mesh_uffd_stats_page *p) {
  const struct mu_mesher_counters *k = &mu_mesher_counters;
  mu_stats_gather(&p->totals);
  p->meshing = mu_options.mesh && !mu_pass_paused();
  p->forks = atomic_load_explicit(&mu_forks, memory_order_relaxed);
  p->mapping_budget = mu_mapping_budget();
  p->large_bytes = (uint64_t)atomic_load_explicit(&mu_large_pages, memory_order_relaxed) << mu_arena.page_shift;
  p->refused_busy = get(&k->refused_busy);
  p->refused_exempt = get(&k->refused_exempt);
  p->refused_overlap = get(&k->refused_overlap);
  p->refused_shared = get(&k->refused_shared);
  p->refused_mappings = get(&k->refused_mappings);
  for (unsigned i = 0; i < MESH_UFFD_STATS_LATENCIES; i++) p->fault_latency[i] = get(&mu_engine_counters.fault_ns[i]);
  const char *why = mu_engine_why();
  memcpy(p->tier_reason, why, mu_min(strlen(why) + 1, sizeof p->tier_reason - 1));
  p->unused_bytes = write_classes(p);
}

static void write_page(bool mesher) {
  struct mesh_uffd_stats_page *p = &mu_stats_page;
  begin();
  write_head(p);
  write_heap(p);
  write_figures(p);
  p->mesher = mesher;
  sample(p);
  end();
}

void mu_stats_page_write(void) {
  write_page(true);
}

void mu_stats_page_write_if_due(void) {
  if (mu_now_ns() - mu_stats_page.updated_ns >= DUE_NS) write_page(true);
}

void mu_stats_page_left_alone(void) {
  if (atomic_load_explicit(sequence(), memory_order_relaxed)) write_page(false);
}
