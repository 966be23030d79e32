/* SPDX-License-Identifier: Apache-2.0 */
/* The heap of a process as it is at the moment, page by page, read from outside. The process goes on meanwhile, so a
 * few pages may be shown as they were a moment before. */
#ifndef CMD_HEAP_H
#define CMD_HEAP_H

#include "cmd/target.h"

enum kind {
  ABSENT, /* no memory there */
  UNUSED, /* free, and may not have gone back yet */
  LARGE,
  FILL_1, /* of a span, up to a fifth of its slots live */
  FILL_2,
  FILL_3,
  FILL_4,
  FILL_5,
  MESHED, /* shows a packed page */
  COPIED, /* did, until it was stored to */
  PACKED, /* a page of a mesh file, which many meshed ones show */
  KINDS,
};

struct heap_page {
  uint8_t kind;
  uint64_t packed; /* MESHED: which packed page; 0 for none */
};

struct heap {
  struct heap_page *pages; /* by address, from the heap's first run to the last page that was ever used */
  size_t count, page_size;
  size_t kinds[KINDS];
  struct heap_page *memory; /* what is really there: each packed page once */
  size_t in_memory;
};

/* Ends the program when it cannot be read. */
void heap_read(const struct target *t, struct heap *h);
void heap_free(struct heap *h);
/* Where in h->memory the packed page is. */
size_t heap_find_packed(const struct heap *h, uint64_t packed);

extern const char *const kind_names[KINDS];

#endif
