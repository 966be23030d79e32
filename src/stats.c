/* SPDX-License-Identifier: Apache-2.0 */
#include "src/stats.h"
#include "src/global_heap.h"
#include "src/log.h"
#include "src/mesh_files.h"
#include "src/mesher.h"
#include "src/sys.h"
#include "uffd/engine.h"
#include <string.h>

static uint64_t get(const _Atomic uint64_t *counter) {
  return atomic_load_explicit(counter, memory_order_relaxed);
}

const char *mu_tier_name(uint32_t tier) {
  static const char *const names[] = {"unknown", "full", "full, write-protect", "user-only", "none"};
  return names[tier < sizeof names / sizeof *names ? tier : 0];
}

/* Read without locks: each figure is of its own moment. */
MU_RACY static void gather_classes(struct mesh_uffd_stats *s) {
  s->live_bytes = (uint64_t)atomic_load_explicit(&mu_large_pages, memory_order_relaxed) << mu_arena.page_shift;
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    const struct mu_class_heap *h = &mu_class_heaps[c];
    s->live_bytes += mu_class_live(h) * mu_classes[c].size;
    s->span_bytes += (h->used_spans * mu_classes[c].span_pages) << mu_arena.page_shift;
    s->miniheap_allocs += h->span_allocs;
    s->miniheap_frees += h->span_frees;
  }
}

uint64_t mu_meshed_pages_now(void) {
  uint64_t shown = get(&mu_pages_shown), packed = mu_file_bytes() >> mu_arena.page_shift;
  return shown > packed ? shown - packed : 0;
}

void mu_stats_gather(struct mesh_uffd_stats *s) {
  const struct mu_mesher_counters *k = &mu_mesher_counters;
  const struct mu_engine_counters *e = &mu_engine_counters;
  uint64_t meshed = mu_meshed_pages_now();
  *s = (struct mesh_uffd_stats){.size = sizeof *s,
                                .tier = mu_engine_tier(),
                                .page_size = (uint32_t)mu_arena.page_size,
                                .meshes = get(&k->meshes),
                                .meshed_pages = meshed,
                                .meshed_pages_hwm = mu_max(meshed, get(&k->meshed_pages_hwm)),
                                .freed_bytes = get(&k->freed_bytes),
                                .reclaimed_bytes = get(&k->reclaimed_bytes),
                                .passes = get(&k->passes),
                                .pass_ns = get(&k->pass_ns),
                                .longest_pass_ns = get(&k->longest_pass_ns),
                                .faults = get(&e->faults),
                                .longest_fault_ns = get(&e->longest_fault_ns),
                                .refused = get(&e->refused),
                                .mappings = get(&mu_mesh_mappings),
                                .miniheaps = get(&mu_spans_in_use),
                                .miniheaps_hwm = get(&mu_spans_hwm),
                                .ops_ring = get(&e->ops_ring),
                                .ops_vector = get(&e->ops_vector),
                                .ops_plain = get(&e->ops_plain),
                                .packed_bytes = mu_file_bytes()};
  gather_classes(s);
}

static double mb(uint64_t bytes) {
  return (double)bytes / (1024.0 * 1024.0);
}

static void line(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void line(const char *format, ...) {
  char text[256];
  va_list args;
  va_start(args, format);
  size_t n = mu_vformat(text, sizeof text - 1, format, args);
  va_end(args);
  text[n++] = '\n';
  mu_print(text, n);
}

static void print_classes(void) {
  line("class    size  span pages      spans  live slots   free slots  meshed runs  runs");
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    const struct mu_class_heap *h = &mu_class_heaps[c];
    if (!h->run_count) continue;
    line("%5u  %6u  %10u  %9zu  %10zu  %11zu  %11zu  %4u", c, mu_classes[c].size, (unsigned)mu_classes[c].span_pages,
         h->used_spans, mu_class_live(h), h->used_spans * mu_classes[c].slots - mu_class_live(h), h->meshed_runs,
         h->run_count);
  }
}

static void print_calls(void) {
  const char *name;
  uint64_t times;
  for (unsigned c = 0; mu_sys_made(c, &name, &times); c++)
    if (times) line("call %s: %lu", name, times);
}

void mu_stats_print(unsigned level) {
  struct mesh_uffd_stats s;
  const struct mu_mesher_counters *k = &mu_mesher_counters;
  mu_stats_gather(&s);
  line("MESH COUNT:         %lu", s.meshes);
  line("Meshed MB (total):  %.1f", mb(get(&k->meshed_pages) * s.page_size));
  line("Meshed pages HWM:   %lu", s.meshed_pages_hwm);
  line("Meshed MB HWM:      %.1f", mb(s.meshed_pages_hwm * s.page_size));
  line("MH Alloc Count:     %lu", s.miniheap_allocs);
  line("MH Free  Count:     %lu", s.miniheap_frees);
  line("MH High Water Mark: %lu", s.miniheaps_hwm);
  line("tier:               %s (%s)", mu_tier_name(s.tier), mu_mesher_why());
  line("passes:             %lu, %.1f ms in all, longest %lu us", s.passes, (double)s.pass_ns / 1e6,
       s.longest_pass_ns / 1000);
  line("faults resolved:    %lu, longest %lu us", s.faults, s.longest_fault_ns / 1000);
  line("pages refused:      %lu by the kernel; units: %lu busy, %lu exempt, %lu overlap, %lu shared, %lu no mapping",
       s.refused, get(&k->refused_busy), get(&k->refused_exempt), get(&k->refused_overlap), get(&k->refused_shared),
       get(&k->refused_mappings));
  line("mappings in use:    %lu", s.mappings);
  line("given back:         %.1f MB by meshing, %.1f MB of unused pages; mesh files hold %.1f MB", mb(s.freed_bytes),
       mb(s.reclaimed_bytes), mb(s.packed_bytes));
  line("operations:         %lu by ring, %lu by vector, %lu plain", s.ops_ring, s.ops_vector, s.ops_plain);
  if (level > 1) print_classes();
  if (level > 1 && mu_sys_hook) print_calls();
}
