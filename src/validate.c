/* SPDX-License-Identifier: Apache-2.0 */
#include "src/validate.h"
#include "src/global_heap.h"

/* Every run in use is on the list of its class. */
static void validate_runs(void) {
  size_t listed = 0, in_use = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++) listed += mu_class_heaps[c].run_count;
  for (size_t r = 0; r < mu_arena_limit() / MU_RUN_PAGES; r++) in_use += mu_arena.runs[r].in_use;
  MU_CHECK(listed == in_use);
}

void mu_heap_validate(bool quiet) {
  mu_global_lock_all();
  for (unsigned c = 1; c < MU_CLASSES; c++) mu_class_validate(c);
  validate_runs();
  mu_arena_validate(quiet);
  mu_global_unlock_all();
}
