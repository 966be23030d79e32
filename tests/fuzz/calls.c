/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sequences of calls, read from the input: three bytes a call. The library's functions go by their prefixed names
 * beside the process's own malloc. Blocks are filled, and looked at before they go; after each input the heap is
 * validated and, now and then, compacted. See driver.c.
 */
#include "src/entry.h"
#include "src/global_heap.h"
#include "src/mesher.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SLOTS = 256 };

static _Thread_local struct block {
  unsigned char *p;
  size_t size;
  unsigned char mark;
} blocks[SLOTS];

static void check(const struct block *b) {
  for (size_t i = 0; i < b->size; i += i < 64 ? 1 : 61)
    if (b->p[i] != b->mark) abort();
  if (b->size && b->p[b->size - 1] != b->mark) abort();
}

static void fill(struct block *b, void *p, size_t size, unsigned char mark) {
  if (!p || mu_usable_size(p) < size) abort();
  *b = (struct block){p, size, mark};
  memset(p, mark, size);
}

static size_t size_of(unsigned a) {
  return a < 128 ? a * 9 : a < 250 ? (size_t)(a - 120) * 277 : (size_t)(a - 249) * 300000;
}

static void call(unsigned what, unsigned slot, unsigned a) {
  struct block *b = &blocks[slot];
  size_t size = size_of(a), align = (size_t)16 << a % 10;
  unsigned char mark = (unsigned char)(a ^ slot ^ 0x5a);
  if (b->p && what < 5) {
    check(b);
    if (what == 4 && size) {
      size_t kept = b->size < size ? b->size : size;
      unsigned char *p = mu_realloc(b->p, size), old = b->mark;
      for (size_t i = 0; i < kept; i += i < 64 ? 1 : 61)
        if (p[i] != old) abort();
      fill(b, p, size, mark);
      return;
    }
    mu_free(b->p);
    b->p = NULL;
  } else if (!b->p && what < 8) {
    unsigned char *p = what == 5   ? mu_calloc(1, size)
                       : what == 6 ? mu_memalign(align, size)
                       : what == 7 ? mu_realloc(NULL, size)
                                   : mu_malloc(size);
    if (what == 5)
      for (size_t i = 0; i < size; i++)
        if (p[i]) abort();
    if (what == 6 && (uintptr_t)p % align) abort();
    fill(b, p, size, mark);
  } else if (b->p) {
    check(b);
  }
}

static void let_go(void) {
  for (size_t i = 0; i < SLOTS; i++) {
    if (!blocks[i].p) continue;
    check(&blocks[i]);
    mu_free(blocks[i].p);
    blocks[i].p = NULL;
  }
}

static void validate(void) {
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    mu_class_lock(c);
    mu_class_validate(c);
    mu_class_unlock(c);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  for (size_t i = 0; i + 3 <= size; i += 3) call(data[i] % 10, data[i + 1], data[i + 2]);
  if (size % 16 == 7) mu_mesher_compact();
  if (size % 4) let_go();
  validate();
  return 0;
}
