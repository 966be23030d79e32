/* SPDX-License-Identifier: Apache-2.0 */
#include "src/decay.h"

#include <criterion/criterion.h>

static const uint64_t MS = 1000000;
static struct mu_decay d;

Test(decay, what_became_unused_at_once_goes_along_a_curve) {
  mu_decay_begin(&d, 1000 * MS, 0);
  size_t last = mu_decay_allows(&d, 0, 1000), left = last;
  cr_assert_eq(last, 1000);
  for (uint64_t ms = 10; ms <= 1010; ms += 10) {
    size_t may = mu_decay_allows(&d, ms * MS, left);
    cr_assert_leq(may, last, "less and less");
    cr_assert_lt(last - may, 60, "%zu at once at %lu ms", last - may, ms);
    if (ms == 100) cr_assert_gt(may, 980);
    if (ms == 500) cr_assert(may > 450 && may < 550, "%zu", may);
    if (ms == 900) cr_assert_lt(may, 25);
    last = may;
    left = left > may ? may : left;
    mu_decay_note_left(&d, left);
  }
  cr_assert_eq(last, 0);
}

Test(decay, each_part_has_its_own_time) {
  mu_decay_begin(&d, 1000 * MS, 0);
  mu_decay_allows(&d, 0, 100);
  mu_decay_allows(&d, 900 * MS, 300); /* 200 more, whatever became of the 100 */
  size_t may = mu_decay_allows(&d, 1050 * MS, 300);
  cr_assert(may > 190 && may <= 200, "%zu", may);
}

Test(decay, what_is_used_again_does_not_count_twice) {
  mu_decay_begin(&d, 1000 * MS, 0);
  mu_decay_allows(&d, 0, 100);
  mu_decay_allows(&d, 100 * MS, 20);
  mu_decay_allows(&d, 200 * MS, 100);
  cr_assert_leq(mu_decay_allows(&d, 210 * MS, 100), 180);
  cr_assert_leq(mu_decay_allows(&d, 1300 * MS, 100), 0);
}

Test(decay, long_sleep_and_no_time_at_all) {
  mu_decay_begin(&d, 1000 * MS, 5 * MS);
  mu_decay_allows(&d, 5 * MS, 100);
  cr_assert_eq(mu_decay_allows(&d, 3600000 * MS, 100), 0);
  cr_assert_eq(mu_decay_allows(&d, 3600000 * MS, 150), 50);
  mu_decay_begin(&d, 0, 0);
  cr_assert_eq(mu_decay_allows(&d, 0, 100), 0);
  cr_assert_eq(mu_decay_allows(&d, MS, 100), 0);
}
