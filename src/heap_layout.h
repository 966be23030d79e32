/* SPDX-License-Identifier: Apache-2.0 */
/* A number that differs when what the command mesh-uffd reads of a heap from outside is laid out differently. */
#ifndef MU_HEAP_LAYOUT_H
#define MU_HEAP_LAYOUT_H

#include "src/arena.h"

static inline uint64_t mu_heap_layout(void) {
  static const size_t parts[] = {
      sizeof(struct mu_run),
      offsetof(struct mu_run, spans),
      offsetof(struct mu_run, in_use),
      offsetof(struct mu_run, size_class),
      offsetof(struct mu_run, meshed),
      offsetof(struct mu_run, unit_log),
      offsetof(struct mu_run, thin),
      offsetof(struct mu_run, edges),
      sizeof(struct mu_mini_heap),
      offsetof(struct mu_mini_heap, next),
      offsetof(struct mu_mini_heap, prev),
      offsetof(struct mu_mini_heap, state),
      offsetof(struct mu_mini_heap, live),
      offsetof(struct mu_mini_heap, bitmap),
      sizeof(struct mu_extent),
      offsetof(struct mu_extent, pages),
      offsetof(struct mu_extent, state),
      MU_SPAN_OPEN,
      MU_SPAN_MESHED,
      MU_EXTENT_DIRTY,
      MU_EXTENT_CLEAN,
      MU_LARGE,
      MU_RUN_PAGES,
      MU_CLASSES,
  };
  uint64_t h = 14695981039346656037U;
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) h = (h ^ parts[i]) * 1099511628211U; /* FNV-1a */
  return h;
}

#endif
