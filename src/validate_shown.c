/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What meshed units show: that the records of mesh files count them, that objects which share a packed unit do not
 * overlap, and that the kernel's mappings and pages are those that the states of spans say. Under every class lock.
 */
#include "src/global_heap.h"
#include "src/mesh_files.h"
#include "src/pack.h"
#include "src/sys.h"
#include "src/thread.h"
#include "src/validate.h"
#include "uffd/engine.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* What is found of each mesh file, by number; and the slots of its packed units that are live, each in some unit. */
struct file {
  uint32_t shown, places; /* units that show it; the highest place, and one */
  uint32_t words;         /* of a unit's bitmap */
  uint64_t first;         /* of its bitmaps, in words */
  uint64_t inode;         /* of the mappings that were seen; 0: none yet */
};

static struct file *file;
static uint64_t *bits;

static void each_unit(void (*f)(uint32_t r, unsigned unit_pages, unsigned u, struct mu_packed_place at)) {
  for (unsigned c = 1; c < MU_CLASSES; c++)
    for (uint32_t r = mu_class_heaps[c].runs; r; r = mu_arena.runs[r].next) {
      unsigned unit_pages = 1U << mu_arena.runs[r].unit_log;
      if (!mu_arena.runs[r].meshed) continue;
      for (unsigned u = 0; u < MU_RUN_PAGES / unit_pages; u++) {
        struct mu_packed_place at = mu_unit_place(r, unit_pages, u);
        if (at.file) f(r, unit_pages, u, at);
      }
    }
}

static void count_unit(uint32_t r, unsigned unit_pages, unsigned u, struct mu_packed_place at) {
  const struct mu_run *run = &mu_arena.runs[r];
  const struct mu_size_class *k = &mu_classes[run->size_class];
  MU_CHECK(at.file < mu_file_top());
  const struct mu_file_record *record = mu_file_at(at.file);
  MU_CHECK(record->size_class == run->size_class && record->unit_pages == unit_pages);
  size_t page = (size_t)r * MU_RUN_PAGES + (size_t)u * unit_pages;
  for (size_t i = page; i < page + unit_pages; i += k->span_pages) {
    const struct mu_mini_heap *span = mu_mini_heap(i);
    bool of_unit = span == &mu_covered_span.span || (span->next == at.file && span->prev == at.unit);
    MU_CHECK(span->state == MU_SPAN_MESHED && of_unit);
  }
  file[at.file].shown++;
  file[at.file].places = (uint32_t)mu_max(file[at.file].places, at.unit + 1);
  file[at.file].words = unit_pages / k->span_pages * k->words;
}

/* Each live slot of a packed unit belongs to one unit alone. */
static void share_unit(uint32_t r, unsigned unit_pages, unsigned u, struct mu_packed_place at) {
  const struct mu_size_class *k = &mu_classes[mu_arena.runs[r].size_class];
  uint64_t *place = bits + file[at.file].first + (uint64_t)at.unit * file[at.file].words;
  size_t page = (size_t)r * MU_RUN_PAGES + (size_t)u * unit_pages;
  for (size_t i = page; i < page + unit_pages; i += k->span_pages, place += k->words)
    for (unsigned w = 0; w < k->words; w++) {
      MU_CHECK(!(place[w] & mu_mini_heap(i)->bitmap[w]));
      place[w] |= mu_mini_heap(i)->bitmap[w];
    }
}

/* What is live in an open pack was written there. */
static void validate_packs(void) {
  for (const struct mu_pack *pack = mu_packs; pack; pack = pack->next) {
    const struct file *f = &file[pack->number];
    MU_CHECK(f->places <= pack->units && mu_file_at(pack->number)->open);
    for (uint64_t i = 0; i < (uint64_t)f->places * f->words; i++) MU_CHECK(!(bits[f->first + i] & ~pack->bits[i]));
  }
}

static void validate_files(uint32_t top) {
  uint64_t words = 0, pages = 0;
  each_unit(count_unit);
  for (uint32_t n = 1; n < top; n++) {
    const struct mu_file_record *record = mu_file_at(n);
    uint32_t refs = atomic_load_explicit(&record->refs, memory_order_relaxed);
    MU_CHECK(refs ? refs == file[n].shown + record->open : !file[n].shown);
    file[n].first = words;
    words += (uint64_t)file[n].places * file[n].words;
    if (refs) pages += atomic_load_explicit(&record->pages, memory_order_relaxed);
  }
  MU_CHECK(pages << mu_arena.page_shift == mu_file_bytes());
  bits = mu_scratch_alloc(words * 8);
  if (!bits) return;
  each_unit(share_unit);
  validate_packs();
  mu_scratch_free(bits, words * 8);
}

static void validate_sums(void) {
  uint64_t mappings = 0, shown = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++)
    for (uint32_t r = mu_class_heaps[c].runs; r; r = mu_arena.runs[r].next) {
      mappings += mu_arena.runs[r].mappings;
      for (size_t page = (size_t)r * MU_RUN_PAGES; page < ((size_t)r + 1) * MU_RUN_PAGES; page++) {
        const struct mu_mini_heap *span = mu_mini_heap(page);
        shown += span->state == MU_SPAN_MESHED && !(span->flags & MU_MH_COVERED);
      }
    }
  MU_CHECK(mappings == atomic_load_explicit(&mu_mesh_mappings, memory_order_relaxed));
  MU_CHECK(shown == atomic_load_explicit(&mu_pages_shown, memory_order_relaxed));
}

/* ---- the kernel's mappings -----------------------------------------------------------------------------------------
 */

struct mapping {
  uintptr_t start, end;
  uint64_t offset, inode;
};

/* start-end permissions offset device inode name */
static bool parse(const char *line, struct mapping *m) {
  char *at;
  m->start = strtoull(line, &at, 16);
  if (*at != '-') return false;
  m->end = strtoull(at + 1, &at, 16);
  if (strlen(at) < 6) return false;
  m->offset = strtoull(at + 6, &at, 16);
  if (!(at = strchr(at + 1, ' '))) return false;
  m->inode = strtoull(at, &at, 10);
  return true;
}

/* A page of a run: private memory, or the page of the file that its span shows. */
static void validate_mapped_page(size_t page, const struct mapping *m) {
  const struct mu_run *run = mu_run_of(page);
  const struct mu_mini_heap *span = mu_mini_heap(page);
  if (span->state != MU_SPAN_MESHED) {
    MU_CHECK(m->inode == 0);
    return;
  }
  unsigned unit_pages = 1U << run->unit_log;
  struct mu_packed_place at =
      mu_unit_place((uint32_t)(page / MU_RUN_PAGES), unit_pages, (unsigned)(page % MU_RUN_PAGES) / unit_pages);
  struct file *f = &file[at.file];
  uint64_t in_file = (uint64_t)at.unit * unit_pages + page % unit_pages;
  if (!f->inode) f->inode = m->inode;
  MU_CHECK(m->inode != 0 && m->inode == f->inode);
  MU_CHECK(m->offset + ((uintptr_t)mu_page_address(page) - m->start) == in_file << mu_arena.page_shift);
}

/* From where the last mapping ended: what lies between is mapped by nobody, so no run is there. */
static size_t validate_mapping(const struct mapping *m, size_t from) {
  uintptr_t base = (uintptr_t)mu_arena.base, end = base + (mu_arena_limit() << mu_arena.page_shift);
  if (m->end <= base || m->start >= end) return from;
  size_t first = (mu_max(m->start, base) - base) >> mu_arena.page_shift,
         last = (mu_min(m->end, end) - base) >> mu_arena.page_shift;
  for (; from < last; from++) {
    if (!mu_run_of(from)->in_use) continue;
    MU_CHECK(from >= first);
    validate_mapped_page(from, m);
  }
  return from;
}

static void validate_mappings(void) {
  static char buf[8192]; /* one validates at a time */
  size_t kept = 0, from = 0;
  ssize_t n;
  int fd = mu_open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  while ((n = mu_read(fd, buf + kept, sizeof buf - 1 - kept)) > 0) {
    char *line = buf, *end;
    buf[kept + (size_t)n] = 0;
    for (; (end = strchr(line, '\n')); line = end + 1) {
      struct mapping m;
      *end = 0;
      if (parse(line, &m)) from = validate_mapping(&m, from);
    }
    kept = strlen(line);
    memmove(buf, line, kept + 1);
    if (kept == sizeof buf - 1) break;
  }
  mu_close(fd);
  for (; n == 0 && from < mu_arena_limit(); from++) MU_CHECK(!mu_run_of(from)->in_use);
}

/* ---- pages -------------------------------------------------------------------------------------------------------
 */

static bool is_zero(size_t page) {
  const char *at = mu_page_address(page);
  return !*at && memcmp(at, at + 1, mu_arena.page_size - 1) == 0;
}

/* What nobody has touched is not there, or reads as zeros. */
static void validate_untouched(void) {
  for (unsigned c = 1; c < MU_CLASSES; c++)
    for (uint32_t r = mu_class_heaps[c].runs; r; r = mu_arena.runs[r].next) {
      uint64_t present, movable;
      size_t first = (size_t)r * MU_RUN_PAGES;
      if (mu_resident(mu_page_address(first), MU_RUN_PAGES, &present, &movable) < 0) return;
      for (; present; present &= present - 1) {
        size_t page = first + (unsigned)__builtin_ctzll(present);
        const struct mu_mini_heap *span = mu_mini_heap(page);
        MU_CHECK(span->state != MU_SPAN_OPEN || span->live || (span->flags & MU_MH_TOUCHED) || is_zero(page));
      }
    }
}

void mu_shown_validate(bool with_kernel) {
  uint32_t top = mu_file_top();
  file = mu_scratch_alloc((top + 1) * sizeof *file);
  if (!file) return;
  validate_sums();
  validate_files(top);
  if (with_kernel) {
    validate_mappings();
    if (mu_thread_is_ours()) validate_untouched(); /* it has the descriptor */
  }
  mu_scratch_free(file, (top + 1) * sizeof *file);
}
