/* SPDX-License-Identifier: Apache-2.0 */
/* The public interface, and what glibc's malloc.h has besides the malloc family. */
#include "src/arena.h"
#include "src/entry.h"
#include "src/global_heap.h"
#include "src/mesher.h"
#include "src/pass.h"
#include "src/profile.h"
#include "src/stats.h"
#include "src/thread_local_heap.h"
#include <errno.h>
#include <malloc.h>
#include <mesh-uffd.h>
#include <stdio.h>
#include <string.h>

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)

MU_EXPORT const char *mesh_uffd_version(void) {
  return TEXT(MESH_UFFD_VERSION_MAJOR) "." TEXT(MESH_UFFD_VERSION_MINOR) "." TEXT(MESH_UFFD_VERSION_PATCH);
}

MU_EXPORT int mesh_uffd_get_stats(struct mesh_uffd_stats *stats) {
  if (!stats || stats->size < offsetof(struct mesh_uffd_stats, meshes)) return EINVAL;
  struct mesh_uffd_stats all;
  mu_stats_gather(&all);
  all.size = mu_min(stats->size, sizeof all);
  memcpy(stats, &all, all.size);
  return 0;
}

MU_EXPORT size_t mesh_uffd_compact(void) {
  return mu_mesher_compact();
}
MU_EXPORT bool mesh_uffd_is_ours(const void *p) {
  return mu_is_ours(p);
}
MU_EXPORT size_t mesh_uffd_usable_size(const void *p) {
  return mu_usable_size(p);
}
MU_EXPORT int mesh_uffd_profile_write(const char *path) {
  return path ? mu_profile_write(path) : EINVAL;
}
MU_EXPORT void mesh_uffd_pause(void) {
  mu_pass_pause();
}
MU_EXPORT void mesh_uffd_resume(void) {
  mu_pass_resume();
}

MU_EXPORT int mesh_uffd_exempt(const void *p) {
  if (!mu_usable_size(p)) return EINVAL;
  if (mu_page_of(p) >= mu_arena_limit() || !mu_run_of(mu_page_of(p))->in_use) return 0; /* never meshed */
  bool entered = mu_heap_enter();
  int error = mu_span_exempt(p);
  if (entered) mu_heap_leave();
  return error;
}

/* ---- glibc's -------------------------------------------------------------------------------------------------------
 */

#ifdef __GLIBC__

MU_EXPORT int malloc_trim(size_t pad) {
  (void)pad;
  return mu_mesher_purge() > 0; /* meshing may take long, and comes by itself */
}

MU_EXPORT int mallopt(int parameter, int value) {
  (void)value;
  return parameter <= M_MXFAST && parameter >= M_ARENA_MAX; /* known, without effect */
}

MU_EXPORT struct mallinfo2 mallinfo2(void) {
  struct mesh_uffd_stats s;
  mu_stats_gather(&s);
  size_t large = atomic_load_explicit(&mu_large_pages, memory_order_relaxed) << mu_arena.page_shift;
  size_t small = s.live_bytes - large;
  return (struct mallinfo2){.arena = s.span_bytes,
                            .ordblks = s.miniheaps,
                            .hblkhd = large,
                            .uordblks = small,
                            .fordblks = s.span_bytes > small ? s.span_bytes - small : 0};
}

static int clip(size_t n) {
  return n > INT32_MAX ? INT32_MAX : (int)n;
}

MU_EXPORT struct mallinfo mallinfo(void) {
  struct mallinfo2 i = mallinfo2();
  return (struct mallinfo){.arena = clip(i.arena),
                           .ordblks = clip(i.ordblks),
                           .hblkhd = clip(i.hblkhd),
                           .uordblks = clip(i.uordblks),
                           .fordblks = clip(i.fordblks)};
}

MU_EXPORT void malloc_stats(void) {
  mu_stats_print(2);
}

MU_EXPORT int malloc_info(int options, FILE *to) {
  if (options != 0) return EINVAL; /* as glibc: returned, not set */
  struct mesh_uffd_stats s;
  mu_stats_gather(&s);
  fprintf(to, "<malloc version=\"1\" allocator=\"mesh-uffd %s\" tier=\"%s\">\n", mesh_uffd_version(),
          mu_tier_name(s.tier));
  fprintf(to, "<sizes>\n");
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    const struct mu_class_heap *h = &mu_class_heaps[c];
    if (h->run_count)
      fprintf(to, "<class size=\"%u\" spans=\"%zu\" live=\"%zu\" meshed-runs=\"%zu\"/>\n", mu_classes[c].size,
              h->used_spans, mu_class_live(h), h->meshed_runs);
  }
  fprintf(to, "</sizes>\n<system type=\"current\" size=\"%llu\"/>\n<live size=\"%llu\"/>\n",
          (unsigned long long)s.span_bytes, (unsigned long long)s.live_bytes);
  fprintf(to,
          "<meshing units=\"%llu\" pages=\"%llu\" freed=\"%llu\" reclaimed=\"%llu\" mappings=\"%llu\"/>\n</malloc>\n",
          (unsigned long long)s.meshes, (unsigned long long)s.meshed_pages, (unsigned long long)s.freed_bytes,
          (unsigned long long)s.reclaimed_bytes, (unsigned long long)s.mappings);
  return 0;
}

#endif
