/* SPDX-License-Identifier: Apache-2.0 */
#include "src/mesh_files.h"
#include "src/arena.h"
#include "src/sys.h"
#include <sys/mman.h>

enum { MAX_FILES = 1 << 18 };

/* Inherited by children, whose meshed spans refer to it too. */
static struct {
  struct mu_file_record *records;
  uint32_t top, last;      /* numbers in use are below top; where an unused one is looked for first */
  _Atomic uint32_t unused; /* of those below top */
  _Atomic uint64_t pages;
} files;

uint32_t mu_file_top(void) {
  return files.top;
}
struct mu_file_record *mu_file_at(uint32_t number) {
  return &files.records[number];
}
uint64_t mu_file_bytes(void) {
  return atomic_load_explicit(&files.pages, memory_order_relaxed) << mu_arena.page_shift;
}

static bool unused(const struct mu_file_record *r) {
  /* acquire: whoever gave up the last reference is done with the record */
  return atomic_load_explicit(&r->refs, memory_order_acquire) == 0;
}

static uint32_t find_unused(void) {
  if (!atomic_load_explicit(&files.unused, memory_order_acquire)) return 0;
  while (!unused(&files.records[files.last])) files.last = files.last + 1 < files.top ? files.last + 1 : 1;
  atomic_fetch_sub_explicit(&files.unused, 1, memory_order_relaxed);
  return files.last;
}

uint32_t mu_file_new(unsigned size_class, unsigned unit_pages) {
  int err;
  if (!files.records) {
    files.records = mu_mmap(NULL, MAX_FILES * sizeof *files.records, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
    if (!files.records) return 0;
    files.top = files.last = 1;
  }
  uint32_t n = find_unused();
  if (!n && files.top == MAX_FILES) return 0;
  if (!n) n = files.top++;
  files.records[n] = (struct mu_file_record){
      .size_class = (uint8_t)size_class, .unit_pages = (uint8_t)unit_pages, .open = 1, .refs = 1};
  return n;
}

void mu_file_add_pages(uint32_t number, uint32_t pages) {
  atomic_fetch_add_explicit(&files.records[number].pages, pages, memory_order_relaxed);
  atomic_fetch_add_explicit(&files.pages, pages, memory_order_relaxed);
}

void mu_file_take_pages(uint32_t number, uint32_t pages) {
  atomic_fetch_sub_explicit(&files.records[number].pages, pages, memory_order_relaxed);
  atomic_fetch_sub_explicit(&files.pages, pages, memory_order_relaxed);
}

/* Its memory is gone. */
static void forget_pages(struct mu_file_record *r) {
  uint32_t pages = atomic_exchange_explicit(&r->pages, 0, memory_order_relaxed);
  atomic_fetch_sub_explicit(&files.pages, pages, memory_order_relaxed);
}

void mu_file_ref(uint32_t number) {
  atomic_fetch_add_explicit(&files.records[number].refs, 1, memory_order_relaxed);
}

/* While it is open one reference is its own, so the last holder is alone, and nobody takes a new one. */
void mu_file_unref(uint32_t number) {
  struct mu_file_record *r = &files.records[number];
  uint32_t refs = atomic_load_explicit(&r->refs, memory_order_relaxed);
  do {
    if (refs == 1) {
      forget_pages(r);
      atomic_store_explicit(&r->refs, 0, memory_order_release);
      atomic_fetch_add_explicit(&files.unused, 1, memory_order_release);
      return;
    }
  } while (
      !atomic_compare_exchange_weak_explicit(&r->refs, &refs, refs - 1, memory_order_acq_rel, memory_order_relaxed));
}

void mu_file_closed(uint32_t number) {
  files.records[number].open = 0;
  mu_file_unref(number);
}

void mu_files_close_all(void) {
  for (uint32_t n = 1; n < files.top; n++)
    if (files.records[n].open) mu_file_closed(n);
}
