/* SPDX-License-Identifier: Apache-2.0 */
#include "src/pacing.h"

enum {
  BURST_SECONDS = 60,
  MAX_PAUSE = 31, /* ticks, while the program is active */
  MAX_IN_VAIN = 8 /* of a program at rest, each after twice the pause: the last one after half a minute */
};

static int64_t most(const struct mu_pacing *p) {
  return (int64_t)BURST_SECONDS * 10000000 * p->percent;
}

void mu_pacing_begin(struct mu_pacing *p, uint32_t percent, uint64_t wall, uint64_t cpu) {
  *p = (struct mu_pacing){.percent = percent, .last_wall = wall, .last_cpu = cpu};
  p->budget_ns = most(p);
}

void mu_pacing_earn(struct mu_pacing *p, uint64_t wall, uint64_t cpu) {
  uint64_t earned = (wall - p->last_wall) / 100 * p->percent;
  p->budget_ns += (int64_t)earned - (int64_t)(cpu - p->last_cpu);
  if (p->budget_ns > most(p)) p->budget_ns = most(p);
  if (p->budget_ns < -most(p)) p->budget_ns = -most(p);
  p->last_wall = wall;
  p->last_cpu = cpu;
}

/* All that the budget can hold is twice as much: from a full one to the deepest debt. */
void mu_pacing_charge(struct mu_pacing *p, uint64_t ns) {
  p->budget_ns -= (int64_t)mu_min(ns, 2 * (uint64_t)most(p));
  if (p->budget_ns < -most(p)) p->budget_ns = -most(p);
}

uint64_t mu_pacing_with_credit(const struct mu_pacing *p) {
  return (uint64_t)(p->budget_ns + most(p)) + 1;
}

uint64_t mu_pacing_until_spend(const struct mu_pacing *p) {
  return p->budget_ns > 0 ? 0 : ((uint64_t)-p->budget_ns / p->percent + 1) * 100;
}

bool mu_pacing_try(struct mu_pacing *p, uint32_t tick, size_t bytes, size_t least, bool active) {
  if (active) p->done = false, p->in_vain = 0;
  bool more = bytes > p->tried_with + p->tried_with / 8;
  if (bytes < least) {
    p->done = true; /* there is nothing to wait for */
    p->pause = 0;
    p->next = tick;
    return false;
  }
  if (more) p->done = false, p->pause = 0, p->next = tick;
  if (p->done || (int32_t)(tick - p->next) < 0 || !mu_pacing_may_spend(p)) return false;
  p->tried_with = bytes;
  return true;
}

void mu_pacing_tried(struct mu_pacing *p, uint32_t tick, enum mu_outcome outcome, bool at_rest) {
  bool vain = outcome == MU_REFUSED || outcome == MU_FUTILE;
  if (!vain) p->pause = p->in_vain = 0;
  if (vain) p->pause = p->pause * 2 + 1;
  if (vain && !at_rest) p->pause = (uint32_t)mu_min(p->pause, MAX_PAUSE);
  if (vain && at_rest) p->in_vain++;
  if (vain && at_rest) p->done = outcome == MU_FUTILE || p->in_vain >= MAX_IN_VAIN;
  p->next = tick + p->pause + 1;
}
