/* SPDX-License-Identifier: Apache-2.0 */
#include "src/room_index.h"

#include <stdbool.h>
#include <string.h>

enum { ROW = MU_ROOM_CHUNK / 64, MOST_SLOTS = 512 };

/* A row is what a vector register holds, or a few of them: compilers turn this into what the processor has. */
typedef uint64_t row_t __attribute__((vector_size(ROW * 8), aligned(8), may_alias));

static size_t rows_of_chunk(uint32_t words) {
  return (size_t)words * 64 + 1;
}

size_t mu_room_index_words(uint32_t n, uint32_t words) {
  return ((size_t)n + MU_ROOM_CHUNK - 1) / MU_ROOM_CHUNK * rows_of_chunk(words) * ROW;
}

static uint64_t *chunk_of(const struct mu_room_index *x, uint32_t chunk) {
  return x->rows + (size_t)chunk * rows_of_chunk(x->words) * ROW;
}

/* The word of slot 0's row that has this packed unit's bit; those of other slots are a row apart. */
static uint64_t *column_of(const struct mu_room_index *x, uint32_t packed) {
  uint32_t i = packed - x->first;
  return chunk_of(x, i / MU_ROOM_CHUNK) + i % MU_ROOM_CHUNK / 64;
}
static uint64_t bit_of(const struct mu_room_index *x, uint32_t packed) {
  return (uint64_t)1 << (packed - x->first) % 64;
}

void mu_room_index_take(struct mu_room_index *x, uint32_t packed, const uint64_t *bits) {
  uint64_t *column = column_of(x, packed), bit = bit_of(x, packed);
  for (uint32_t w = 0; w < x->words; w++)
    for (uint64_t left = bits[w]; left; left &= left - 1)
      column[((size_t)w * 64 + (uint32_t)__builtin_ctzll(left)) * ROW] &= ~bit;
}

void mu_room_index_release(struct mu_room_index *x, uint32_t packed, const uint64_t *bits) {
  uint64_t *column = column_of(x, packed), bit = bit_of(x, packed);
  for (uint32_t w = 0; w < x->words; w++)
    for (uint64_t left = bits[w]; left; left &= left - 1)
      column[((size_t)w * 64 + (uint32_t)__builtin_ctzll(left)) * ROW] |= bit;
}

void mu_room_index_build(struct mu_room_index *x, const uint64_t *packed, const uint32_t *live, uint32_t first,
                         uint32_t end) {
  x->first = first;
  x->end = end;
  size_t slots = rows_of_chunk(x->words) - 1;
  for (uint32_t c = 0; c < mu_room_index_chunks(x); c++) {
    memset(chunk_of(x, c), 0xff, slots * ROW * sizeof(uint64_t));
    memset(chunk_of(x, c) + slots * ROW, 0, ROW * sizeof(uint64_t));
  }
  for (uint32_t i = first; i < end; i++) {
    if (!live[i]) continue;
    column_of(x, i)[slots * ROW] |= bit_of(x, i);
    mu_room_index_take(x, i, packed + (size_t)i * x->words);
  }
}

/* Live slots of a unit: the first of them, if there are very many. */
static uint32_t slots_of(const uint64_t *bits, uint32_t words, uint32_t slots[MOST_SLOTS]) {
  uint32_t n = 0;
  for (uint32_t w = 0; w < words; w++)
    for (uint64_t left = bits[w]; left && n < MOST_SLOTS; left &= left - 1)
      slots[n++] = w * 64 + (uint32_t)__builtin_ctzll(left);
  return n;
}

static bool is_zero(const row_t *r) {
  uint64_t any = 0;
  for (int i = 0; i < ROW; i++) any |= (*r)[i];
  return !any;
}

enum { SLOTS_AT_ONCE = 4 };

static bool fitting(const struct mu_room_index *x, uint32_t chunk, const uint32_t *slots, uint32_t n, row_t *fits) {
  const uint64_t *rows = chunk_of(x, chunk);
  row_t r = *(const row_t *)(const void *)(rows + (rows_of_chunk(x->words) - 1) * ROW);
  for (uint32_t i = 0; i < n; i++) {
    r &= *(const row_t *)(const void *)(rows + (size_t)slots[i] * ROW);
    if (i % SLOTS_AT_ONCE == SLOTS_AT_ONCE - 1 && is_zero(&r)) return false;
  }
  *fits = r;
  return true;
}

uint32_t mu_room_index_find(const struct mu_room_index *x, const uint64_t *bits, uint32_t start, uint32_t probes,
                            uint32_t *found, uint32_t most) {
  uint32_t slots[MOST_SLOTS], n = slots_of(bits, x->words, slots), chunks = mu_room_index_chunks(x), got = 0;
  uint32_t wanted = (probes + MU_ROOM_CHUNK - 1) / MU_ROOM_CHUNK;
  if (wanted > chunks) wanted = chunks;
  for (uint32_t i = 0, c = start; i < wanted && got < most; i++, c = c + 1 < chunks ? c + 1 : 0) {
    row_t fits;
    if (!fitting(x, c, slots, n, &fits)) continue;
    for (uint32_t w = 0; w < ROW; w++)
      for (uint64_t left = fits[w]; left && got < most; left &= left - 1)
        found[got++] = x->first + c * MU_ROOM_CHUNK + w * 64 + (uint32_t)__builtin_ctzll(left);
  }
  return got;
}
