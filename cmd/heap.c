/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/heap.h"
#include "src/heap_layout.h"
#include "uffd/compat.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const kind_names[KINDS] = {"not there",
                                       "free, not yet given back",
                                       "large object",
                                       "up to 20 % live",
                                       "up to 40 % live",
                                       "up to 60 % live",
                                       "up to 80 % live",
                                       "more than 80 % live",
                                       "meshed: shares a page",
                                       "meshed, stored to since",
                                       "packed page, shared"};

enum { BLOCK = 128, RUN = MU_RUN_PAGES };

/* What is read of the process; records of extents a block at a time. */
struct reader {
  const struct target *t;
  struct mu_run *runs;
  uint64_t *pagemap; /* NULL: may not be read */
  struct mu_extent block[BLOCK];
  size_t block_at;
  size_t pages;
  struct heap *h;
};

static void *must(void *p) {
  if (!p) die(FAILED, "no memory");
  return p;
}

static void read_runs(struct reader *r) {
  size_t n = r->pages / RUN;
  r->runs = must(calloc(n, sizeof *r->runs));
  if (!target_copy(r->t, r->runs, r->t->page.heap_runs, n * sizeof *r->runs)) {
    bool gone = errno == ESRCH;
    die(gone ? NO_PROCESS : FAILED, "process %d: %s", r->t->pid, gone ? "has ended" : strerror(errno));
  }
}

static void read_pagemap(struct reader *r) {
  char path[64];
  size_t bytes = r->pages * sizeof *r->pagemap, done = 0;
  snprintf(path, sizeof path, "/proc/%d/pagemap", r->t->pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  r->pagemap = must(calloc(r->pages, sizeof *r->pagemap));
  off_t from = (off_t)(r->t->page.heap_base / r->h->page_size * sizeof *r->pagemap);
  ssize_t n = 1;
  while (done < bytes && (n = pread(fd, (char *)r->pagemap + done, bytes - done, from + (off_t)done)) > 0)
    done += (size_t)n;
  close(fd);
  if (done == bytes) return;
  free(r->pagemap);
  r->pagemap = NULL;
}

static bool is_there(const struct reader *r, size_t page) {
  return !r->pagemap || (r->pagemap[page] & (MU_PM_PRESENT | MU_PM_SWAPPED));
}

static void set(struct reader *r, size_t page, enum kind kind, uint64_t packed) {
  r->h->pages[page] = (struct heap_page){(uint8_t)kind, packed};
}

static enum kind kind_of_fill(unsigned live, unsigned slots) {
  if (!live) return UNUSED;
  unsigned fifth = (live * 5 - 1) / slots;
  return (enum kind)(FILL_1 + (fifth < 4 ? fifth : 4));
}

/* A meshed page shows the file, unless it was stored to. */
static void set_meshed(struct reader *r, const struct mu_run *run, size_t page, const struct mu_mini_heap *span) {
  bool copied = r->pagemap && (r->pagemap[page] & MU_PM_PRESENT) && !(r->pagemap[page] & MU_PM_FILE);
  uint64_t in_unit = page & (((size_t)1 << (run->unit_log & 7)) - 1);
  if (copied)
    set(r, page, COPIED, 0);
  else if (span->live)
    set(r, page, MESHED, (uint64_t)span->next << 32 | ((uint64_t)span->prev << (run->unit_log & 7)) | in_unit);
}

static void set_span(struct reader *r, const struct mu_run *run, size_t page, const struct mesh_uffd_class_stats *c,
                     const struct mu_mini_heap *span) {
  for (size_t at = page; at < page + c->span_pages; at++)
    if (span->state == MU_SPAN_MESHED)
      set_meshed(r, run, at, span);
    else if (is_there(r, at))
      set(r, at, kind_of_fill(span->live, c->slots), 0);
}

/* A run that has gone meanwhile is left out. */
static void read_run(struct reader *r, size_t page) {
  const struct mu_run *run = &r->runs[page / RUN];
  char table[RUN * 256];
  if (!run->size_class || run->size_class > r->t->page.classes || run->size_class > MESH_UFFD_STATS_CLASSES) return;
  const struct mesh_uffd_class_stats *c = &r->t->page.class_rows[run->size_class - 1];
  size_t meta = sizeof(struct mu_mini_heap) + (c->slots + 63) / 64 * sizeof(uint64_t);
  if (!c->span_pages || c->span_pages > RUN || !c->slots) return;
  size_t spans = RUN / c->span_pages, index = run->thin ? (spans + 7) / 8 * 8 : 0,
         entries = run->thin ? run->thin : spans;
  if (index + entries * meta > sizeof table) return;
  if (!target_copy(r->t, table, (uintptr_t)run->spans, index + entries * meta)) return;
  for (size_t i = 0; i < spans; i++) {
    struct mu_mini_heap span;
    size_t entry = index ? (uint8_t)table[i] : i + 1; /* 0: nothing is left of it */
    if (!entry || entry > entries) continue;
    memcpy(&span, table + index + (entry - 1) * meta, sizeof span);
    set_span(r, run, page + i * c->span_pages, c, &span);
  }
}

static const struct mu_extent *extent_at(struct reader *r, size_t page) {
  static const struct mu_extent none;
  if (page % RUN == 0 || page % RUN == RUN - 1) return &r->runs[page / RUN].edges[page % RUN != 0];
  if (page < r->block_at || page >= r->block_at + BLOCK) {
    size_t n = r->pages - page < BLOCK ? r->pages - page : BLOCK;
    r->block_at = page;
    memset(r->block, 0, sizeof r->block);
    if (!target_copy(r->t, r->block, r->t->page.heap_extents + page * sizeof(struct mu_extent),
                     n * sizeof(struct mu_extent)))
      return &none;
  }
  return &r->block[page - r->block_at];
}

static size_t read_extent(struct reader *r, size_t page) {
  const struct mu_extent *m = extent_at(r, page);
  bool known = m->state == MU_LARGE || (m->state >= MU_EXTENT_DIRTY && m->state <= MU_EXTENT_BUSY);
  size_t n = known && m->pages && m->pages <= r->pages - page ? m->pages : 1;
  for (size_t at = page; known && at < page + n; at++)
    if (is_there(r, at)) set(r, at, m->state == MU_LARGE ? LARGE : UNUSED, 0);
  return n;
}

static int by_packed(const void *a, const void *b) {
  uint64_t x = ((const struct heap_page *)a)->packed, y = ((const struct heap_page *)b)->packed;
  return x < y ? -1 : x > y;
}

/* Pages that are there, in order of address, and then each packed page once. */
static void find_memory(struct heap *h) {
  size_t own = 0, shared = 0, packed = 0;
  h->memory = must(calloc(h->count + 1, sizeof *h->memory));
  for (size_t i = 0; i < h->count; i++) {
    h->kinds[h->pages[i].kind]++;
    if (h->pages[i].kind != ABSENT && h->pages[i].kind != MESHED) h->memory[own++] = h->pages[i];
  }
  struct heap_page *pages = h->memory + own;
  for (size_t i = 0; i < h->count; i++)
    if (h->pages[i].kind == MESHED) pages[shared++] = (struct heap_page){PACKED, h->pages[i].packed};
  qsort(pages, shared, sizeof *pages, by_packed);
  for (size_t i = 0; i < shared; i++)
    if (!i || pages[i].packed != pages[i - 1].packed) pages[packed++] = pages[i];
  h->kinds[PACKED] = packed;
  h->in_memory = own + packed;
}

size_t heap_find_packed(const struct heap *h, uint64_t packed) {
  size_t low = h->in_memory - h->kinds[PACKED], high = h->in_memory;
  while (high - low > 1) {
    size_t middle = (low + high) / 2;
    if (h->memory[middle].packed <= packed)
      low = middle;
    else
      high = middle;
  }
  return low;
}

void heap_read(const struct target *t, struct heap *h) {
  if (t->page.heap_layout != mu_heap_layout())
    die(FAILED, "process %d: its library lays out its heap differently; use the command that came with it", t->pid);
  *h = (struct heap){.page_size = t->page.totals.page_size};
  struct reader r = {.t = t, .pages = t->page.heap_pages, .h = h};
  if (r.pages > ((size_t)1 << 40) || r.pages < RUN || !h->page_size) die(FAILED, "process %d: no heap", t->pid);
  r.block_at = r.pages;
  h->pages = must(calloc(r.pages, sizeof *h->pages));
  read_runs(&r);
  read_pagemap(&r);
  if (!r.pagemap) complain("/proc/%d/pagemap may not be read: what is not there is not told apart", t->pid);
  for (size_t page = RUN; page < r.pages;) {
    if (page % RUN == 0 && r.runs[page / RUN].in_use) {
      read_run(&r, page);
      page += RUN;
    } else {
      page += read_extent(&r, page);
    }
  }
  free(r.runs);
  free(r.pagemap);
  memmove(h->pages, h->pages + RUN, (r.pages - RUN) * sizeof *h->pages);
  h->count = r.pages - RUN;
  while (h->count && h->pages[h->count - 1].kind == ABSENT) h->count--;
  find_memory(h);
}

void heap_free(struct heap *h) {
  free(h->pages);
  free(h->memory);
}
