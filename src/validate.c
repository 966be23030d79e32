/* SPDX-License-Identifier: Apache-2.0 */
#include "src/validate.h"
#include "src/fork.h"
#include "src/global_heap.h"
#include "src/sys.h"

/* Every run in use is on the list of its class. */
static void validate_runs(void) {
  size_t listed = 0, in_use = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++) listed += mu_class_heaps[c].run_count;
  for (size_t r = 0; r < mu_arena_limit() / MU_RUN_PAGES; r++) in_use += mu_arena.runs[r].in_use;
  MU_CHECK(listed == in_use);
}

static void validate_classes(bool with_kernel) {
  for (unsigned c = 1; c < MU_CLASSES; c++) mu_class_validate(c);
  validate_runs();
  mu_shown_validate(with_kernel);
}

enum { WITH_KERNEL_EVERY = 16 }; /* its list of mappings takes long */

void mu_heap_validate(bool quiet) {
  static uint32_t times;
  mu_global_lock_all();
  validate_classes(quiet || times++ % WITH_KERNEL_EVERY == 0);
  mu_lock_take(&mu_extent_lock);
  mu_arena_validate(quiet);
  mu_lock_release(&mu_extent_lock);
  mu_global_unlock_all();
}

const char *mu_heap_validate_now(void) {
  struct mu_fork locks = {.taken = 0};
  const char *result = "valid";
  for (unsigned c = 1; c < MU_CLASSES; c++)
    if (mu_class_heaps[c].lost)
      return "not looked at: this is the child of a raw fork, and part of the heap is given up";
  if (mu_locks_seize(&locks)) {
    validate_classes(true);
    mu_arena_validate(false);
  } else {
    result = "not looked at: somebody is changing it; go on and try again";
  }
  mu_locks_let_go(&locks);
  return result;
}
