/* SPDX-License-Identifier: Apache-2.0 */
#include "src/pacing.h"

#include <criterion/criterion.h>

static const uint64_t SECOND = 1000000000;
static struct mu_pacing p;

static void begin(void) {
  mu_pacing_begin(&p, 5, 100 * SECOND, 7 * SECOND);
}

TestSuite(pacing, .init = begin);

Test(pacing, a_minutes_worth_may_be_spent_at_once) {
  cr_assert_eq(p.budget_ns, (int64_t)(3 * SECOND));
  mu_pacing_earn(&p, 100 * SECOND + SECOND / 2, 7 * SECOND + SECOND / 2);
  cr_assert(mu_pacing_may_spend(&p));
  mu_pacing_earn(&p, 104 * SECOND, 11 * SECOND);
  cr_assert_not(mu_pacing_may_spend(&p));
  uint64_t wait = mu_pacing_until_spend(&p);
  cr_assert(wait > 15 * SECOND && wait < 17 * SECOND, "0.8 s too much, at 5 %%: %lu", wait);
  mu_pacing_earn(&p, 104 * SECOND + wait, 11 * SECOND);
  cr_assert(mu_pacing_may_spend(&p));
  cr_assert_eq(mu_pacing_until_spend(&p), 0);
}

Test(pacing, credit_and_debt_have_a_limit) {
  mu_pacing_earn(&p, 10000 * SECOND, 7 * SECOND);
  cr_assert_eq(p.budget_ns, (int64_t)(3 * SECOND));
  mu_pacing_charge(&p, 1000 * SECOND);
  cr_assert_eq(p.budget_ns, -(int64_t)(3 * SECOND), "at once, from a full budget");
  mu_pacing_charge(&p, UINT64_MAX);
  cr_assert_eq(p.budget_ns, -(int64_t)(3 * SECOND));
  cr_assert_not(mu_pacing_try(&p, 1, 1000, 10, true), "there is nothing to spend");
}

/* Ticks at which it was tried, when every attempt has this outcome. */
static unsigned attempts(enum mu_outcome outcome, bool at_rest, uint32_t ticks, uint32_t *last) {
  unsigned n = 0;
  for (uint32_t tick = 1; tick <= ticks; tick++)
    if (mu_pacing_try(&p, tick, 1000, 10, !at_rest)) {
      mu_pacing_tried(&p, tick, outcome, at_rest);
      *last = tick;
      n++;
    }
  return n;
}

Test(pacing, what_pays_is_gone_on_with) {
  uint32_t last;
  cr_assert_eq(attempts(MU_PAID, false, 100, &last), 100);
  begin();
  cr_assert_eq(attempts(MU_PUT_OFF, true, 100, &last), 100);
}

Test(pacing, what_does_not_pay_is_tried_less_and_less_but_not_never_by_an_active_program) {
  uint32_t last;
  unsigned n = attempts(MU_FUTILE, false, 1000, &last);
  cr_assert(n > 25 && n < 40, "%u", n);
  cr_assert_gt(last, 960);
}

Test(pacing, a_program_at_rest_is_left_alone_in_the_end) {
  uint32_t last;
  cr_assert_eq(attempts(MU_FUTILE, true, 100000, &last), 1);
  cr_assert(p.done);
  begin();
  unsigned n = attempts(MU_REFUSED, true, 100000, &last);
  cr_assert(n > 5 && n < 12, "%u", n);
  cr_assert(last > 200 && last < 1000, "tick %u", last);
  cr_assert(p.done);
}

Test(pacing, it_is_tried_again_when_the_program_goes_on_or_there_is_more_to_gain) {
  uint32_t last;
  attempts(MU_FUTILE, true, 100, &last);
  cr_assert_not(mu_pacing_try(&p, 101, 1000, 10, false));
  cr_assert(mu_pacing_try(&p, 101, 1200, 10, false));
  mu_pacing_tried(&p, 101, MU_FUTILE, true);
  cr_assert(mu_pacing_try(&p, 200, 1200, 10, true));
}

Test(pacing, little_to_gain_is_nothing_to_wait_for) {
  cr_assert_not(mu_pacing_try(&p, 1, 9, 10, true));
  cr_assert(p.done);
  cr_assert(mu_pacing_try(&p, 2, 10, 10, true));
}
