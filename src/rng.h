/* SPDX-License-Identifier: Apache-2.0 */
/* xorshift64* (S. Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled"): fast, not for
 * secrets. */
#ifndef MU_RNG_H
#define MU_RNG_H

#include "src/common.h"

static inline uint64_t mu_rng_next(uint64_t *state) {
  uint64_t x = *state;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  *state = x;
  return x * 0x2545F4914F6CDD1DULL;
}

/* Uniform enough in [0, n), n > 0, by multiplication instead of division. */
static inline uint32_t mu_rng_below(uint64_t *state, uint32_t n) {
  return (uint32_t)(((mu_rng_next(state) >> 32) * n) >> 32);
}

#endif
