/* SPDX-License-Identifier: Apache-2.0 */
#include "src/decay.h"
#include <string.h>

static uint64_t step_of(const struct mu_decay *d, uint64_t now) {
  return d->time_ns ? now / (d->time_ns / MU_DECAY_STEPS + 1) : 0;
}

void mu_decay_begin(struct mu_decay *d, uint64_t time_ns, uint64_t now) {
  memset(d, 0, sizeof *d);
  d->time_ns = time_ns;
  d->step = step_of(d, now);
}

/* The share of what became unused `age` steps ago that may stay: 1 - (6x^5 - 15x^4 + 10x^3). */
static double share_left(uint64_t age) {
  double x = (double)age / MU_DECAY_STEPS;
  return 1 - x * x * x * (x * (6 * x - 15) + 10);
}

/* Steps that nobody looked at saw no growth, as far as anybody knows. */
static void advance(struct mu_decay *d, uint64_t step) {
  if (step - d->step >= MU_DECAY_STEPS) memset(d->fresh, 0, sizeof d->fresh);
  for (; step - d->step < MU_DECAY_STEPS && d->step < step;) d->fresh[++d->step % MU_DECAY_STEPS] = 0;
  d->step = step;
}

size_t mu_decay_allows(struct mu_decay *d, uint64_t now, size_t unused) {
  double allowed = 0;
  if (!d->time_ns) return 0;
  advance(d, step_of(d, now));
  if (unused > d->left) d->fresh[d->step % MU_DECAY_STEPS] += unused - d->left;
  d->left = unused;
  for (uint64_t age = 0; age < MU_DECAY_STEPS && age <= d->step; age++)
    allowed += (double)d->fresh[(d->step - age) % MU_DECAY_STEPS] * share_left(age);
  return (size_t)allowed;
}

void mu_decay_note_left(struct mu_decay *d, size_t pages) {
  d->left = pages;
}
