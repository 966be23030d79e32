/* SPDX-License-Identifier: Apache-2.0 */
#include "src/thin_table.h"
#include "src/span_table.h"
#include <string.h>

enum { LEAST_BYTES = 512 }; /* of a whole table: less is not worth it */

const union mu_covered_span mu_covered_span = {
    .span = {.state = MU_SPAN_MESHED, .bin = MU_NO_BIN, .flags = MU_MH_TOUCHED | MU_MH_COVERED}};

static size_t bytes_of(const struct mu_size_class *k, unsigned entries) {
  return mu_thin_index_bytes(k) + (size_t)entries * k->meta;
}

/* Three quarters of what there is, or less: some more or less entries do not have tables made anew. */
bool mu_thin_pays(const struct mu_size_class *k, unsigned entries, unsigned now) {
  size_t whole = (size_t)k->meta * k->spans_per_run;
  size_t is = now ? mu_thin_block_bytes(bytes_of(k, now)) : whole;
  return whole >= LEAST_BYTES && mu_thin_block_bytes(bytes_of(k, entries)) * 4 <= is * 3;
}

static const struct mu_mini_heap *span_at(const struct mu_run *run, const struct mu_size_class *k, unsigned i) {
  if (run->thin) return mu_thin_mini_heap(run, k, i);
  return (const struct mu_mini_heap *)(const void *)(run->spans + (size_t)i * k->meta);
}

static unsigned unit_of(const struct mu_run *run, const struct mu_size_class *k, unsigned span) {
  return span << k->span_shift >> run->unit_log;
}

/* What follows a place: that of the next span, which may be of the same unit. */
static struct mu_packed_place next_place(const struct mu_run *run, const struct mu_size_class *k, unsigned span,
                                         struct mu_packed_place at) {
  at.unit += unit_of(run, k, span) - unit_of(run, k, span - 1);
  return at;
}

/* Of a span, when that before it is at `before`. */
static struct mu_packed_place place_of(const struct mu_run *run, const struct mu_size_class *k, unsigned span,
                                       struct mu_packed_place before) {
  const struct mu_mini_heap *m = span_at(run, k, span);
  if (m->state != MU_SPAN_MESHED) return (struct mu_packed_place){0, 0};
  if (m == &mu_covered_span.span) return next_place(run, k, span, before);
  return (struct mu_packed_place){m->next, m->prev};
}

static bool needs_entry(const struct mu_run *run, const struct mu_size_class *k, unsigned span,
                        struct mu_packed_place at, struct mu_packed_place before) {
  const struct mu_mini_heap *m = span_at(run, k, span);
  if (m == &mu_covered_span.span) return false;
  if (span == 0 || m->state != MU_SPAN_MESHED || m->live || !before.file) return true;
  struct mu_packed_place follows = next_place(run, k, span, before);
  return at.file != follows.file || at.unit != follows.unit;
}

unsigned mu_thin_entries(const struct mu_run *run, const struct mu_size_class *k) {
  struct mu_packed_place at = {0, 0}, before = at;
  unsigned n = 0;
  for (unsigned i = 0; i < k->spans_per_run; i++, before = at) {
    at = place_of(run, k, i, before);
    n += needs_entry(run, k, i, at, before);
  }
  return n;
}

char *mu_thin_table_make(const struct mu_run *run, const struct mu_size_class *k, unsigned entries) {
  char *table = mu_thin_block_alloc(bytes_of(k, entries));
  struct mu_packed_place at = {0, 0}, before = at;
  unsigned n = 0;
  if (!table) return NULL;
  memset(table, 0, mu_thin_index_bytes(k));
  for (unsigned i = 0; i < k->spans_per_run; i++, before = at) {
    at = place_of(run, k, i, before);
    if (!needs_entry(run, k, i, at, before)) continue;
    memcpy(table + mu_thin_index_bytes(k) + (size_t)n * k->meta, span_at(run, k, i), k->meta);
    table[i] = (char)++n;
  }
  MU_CHECK(n == entries);
  return table;
}

void mu_thin_table_free(const struct mu_size_class *k, char *table, unsigned entries) {
  mu_thin_block_free(table, bytes_of(k, entries));
}

char *mu_thin_table_move(const struct mu_size_class *k, char *table, unsigned entries) {
  return mu_thin_block_move(table, bytes_of(k, entries));
}

void mu_thin_table_expand(const struct mu_run *run, const struct mu_size_class *k, char *whole) {
  struct mu_packed_place at = {0, 0};
  for (unsigned i = 0; i < k->spans_per_run; i++, whole += k->meta) {
    const struct mu_mini_heap *m = span_at(run, k, i);
    at = place_of(run, k, i, at);
    memcpy(whole, m, k->meta);
    if (m != &mu_covered_span.span) continue;
    ((struct mu_mini_heap *)(void *)whole)->next = at.file;
    ((struct mu_mini_heap *)(void *)whole)->prev = at.unit;
  }
}

struct mu_packed_place mu_thin_place(const struct mu_run *run, const struct mu_size_class *k, unsigned unit_pages,
                                     unsigned unit) {
  unsigned span = unit * unit_pages >> k->span_shift, i = span;
  while (!run->spans[i]) i--;
  const struct mu_mini_heap *m = span_at(run, k, i);
  if (m->state != MU_SPAN_MESHED) return (struct mu_packed_place){0, 0};
  return (struct mu_packed_place){m->next, m->prev + unit_of(run, k, span) - unit_of(run, k, i)};
}
