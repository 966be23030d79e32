/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pacing: how much processor time background work may take, and when meshing is tried again. Pure: the caller brings
 * the clocks. Mesher thread only.
 */
#ifndef MU_PACING_H
#define MU_PACING_H

#include "src/common.h"

enum mu_outcome {
  MU_PAID,
  MU_PUT_OFF, /* something was left for a moment: it is tried again at once */
  MU_REFUSED, /* it gave nothing back, but something was in the way that may go away by itself */
  MU_FUTILE,  /* it gave nothing back, and will not before the program does something */
};

struct mu_pacing {
  uint32_t percent;             /* of one core, averaged over a minute */
  int64_t budget_ns;            /* processor time that may be spent now */
  uint64_t last_wall, last_cpu; /* ns */
  uint32_t next, pause;         /* tick of the next attempt; of how many ticks the last pause was */
  uint32_t in_vain;             /* attempts in a row that did not pay since the program fell silent */
  bool done;                    /* no attempt before the program does something */
  size_t tried_with;            /* bytes that might be given back when it was last tried */
};

void mu_pacing_begin(struct mu_pacing *p, uint32_t percent, uint64_t wall, uint64_t cpu);
/* Both clocks as of now: earns what has passed of the one, pays for what has passed of the other. */
void mu_pacing_earn(struct mu_pacing *p, uint64_t wall, uint64_t cpu);
/* Pays for work that others did for us, or that we caused. */
void mu_pacing_charge(struct mu_pacing *p, uint64_t ns);
static inline bool mu_pacing_may_spend(const struct mu_pacing *p) {
  return p->budget_ns > 0;
}
/* Where it matters more than its cost: what may be spent now, and a minute's worth on credit. */
uint64_t mu_pacing_with_credit(const struct mu_pacing *p);
/* When something may be spent again: ns from now, 0 if already. */
uint64_t mu_pacing_until_spend(const struct mu_pacing *p);

/* Whether to try now: `bytes` might be given back, which is at least `least`. active: the program did something since
 * the last call. */
bool mu_pacing_try(struct mu_pacing *p, uint32_t tick, size_t bytes, size_t least, bool active);
void mu_pacing_tried(struct mu_pacing *p, uint32_t tick, enum mu_outcome outcome, bool at_rest);

#endif
