/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sampling by bytes: each byte that is allocated is a point of a Poisson process with so many bytes between points on
 * average, and an object with a point in it is a sample. So an object of s bytes becomes one with probability
 * 1 - exp(-s / mean), whatever was allocated before, and stands for 1 / that many.
 */
#ifndef MU_SAMPLING_H
#define MU_SAMPLING_H

#include "src/rng.h"
#include <string.h>

/* ln x for normal x > 0, to 1e-12: libm is not the C library. x = m * 2^e with m in [1, 2), and
 * ln m = 2 (t + t^3/3 + t^5/5 ...) with t = (m - 1) / (m + 1) of at most 1/3. */
static inline double mu_ln(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  int e = (int)(bits >> 52) - 1023;
  bits = (bits & (((uint64_t)1 << 52) - 1)) | (uint64_t)1023 << 52;
  double m, sum = 0;
  memcpy(&m, &bits, sizeof m);
  double t = (m - 1) / (m + 1), power = t;
  for (int k = 1; k < 27; k += 2, power *= t * t) sum += power / k;
  return 2 * sum + e * 0.69314718055994530942;
}

/* 1 - exp(-x) for x >= 0: the series for small x, where the difference would lose digits. */
static inline double mu_share_sampled(double x) {
  if (x > 40) return 1;
  if (x > 0.5) { /* (1 - h)(1 + exp(-x/2)) with h = exp(-x/2) */
    double half = mu_share_sampled(x / 2);
    return half * (2 - half);
  }
  double sum = 0, term = x;
  for (int k = 2; k < 16; term *= -x / k, k++) sum += term;
  return sum;
}

/* How many objects a sampled one stands for. */
static inline double mu_sample_weight(size_t size, uint32_t mean) {
  return 1 / mu_share_sampled((double)size / mean);
}

/* Bytes to the next point. */
static inline int64_t mu_next_sample(uint64_t *rng, uint32_t mean) {
  double u = (double)((mu_rng_next(rng) >> 11) + 1) * 0x1p-53; /* in (0, 1] */
  return (int64_t)(-mu_ln(u) * mean) + 1;
}

#endif
