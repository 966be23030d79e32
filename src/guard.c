/* SPDX-License-Identifier: Apache-2.0 */
#include "src/guard.h"
#include <string.h>

enum { PATTERN = 0xc5 };

/* Its own inverse. */
static uint64_t scrambled(const void *p, uint64_t size) {
  return size ^ ((uintptr_t)p * UINT64_C(0x9e3779b97f4a7c15));
}

static uint64_t stored(const void *p, size_t room) {
  uint64_t word;
  memcpy(&word, (const char *)p + room - sizeof word, sizeof word);
  return scrambled(p, word);
}

void mu_guard_set(void *p, size_t size, size_t room) {
  uint64_t word = scrambled(p, size);
  memset((char *)p + size, PATTERN, room - sizeof word - size);
  memcpy((char *)p + room - sizeof word, &word, sizeof word);
}

size_t mu_guard_size(const void *p, size_t room) {
  return mu_min(stored(p, room), room - MU_GUARD_BYTES);
}

const void *mu_guard_broken(const void *p, size_t room) {
  const unsigned char *bytes = p, *end = bytes + room - sizeof(uint64_t);
  uint64_t size = stored(p, room);
  if (size > room - MU_GUARD_BYTES) return end;
  for (const unsigned char *at = bytes + size; at < end; at++)
    if (*at != PATTERN) return at;
  return NULL;
}
