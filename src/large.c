/* SPDX-License-Identifier: Apache-2.0 */
#include "src/large.h"
#include "src/global_heap.h"
#include "src/huge.h"
#include "src/sys.h"
#include <sys/mman.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* Moving page tables costs a flush and two mappings; below this, copying is as fast. No derivation beyond a trial. */
enum { MIN_MOVE_BYTES = 1 << 18 };

static struct mu_extent *large_at(const void *p) {
  size_t page = mu_page_of(p);
  if (page >= mu_arena_limit() || mu_page_address(page) != p) return NULL;
  struct mu_extent *m = mu_extent_at(page);
  return mu_extent_state(m) == MU_LARGE ? m : NULL;
}

/* All of a record that is not free memory's: the rest stays blank. */
static void note(struct mu_extent *m, enum mu_state state, size_t pages, bool moved, bool huge) {
  m->pages = (uint32_t)pages;
  m->moved = moved;
  m->huge = huge;
  mu_extent_set_state(m, state);
}

static void count(size_t pages, bool more) {
  if (more)
    atomic_fetch_add_explicit(&mu_large_pages, pages, memory_order_relaxed);
  else
    atomic_fetch_sub_explicit(&mu_large_pages, pages, memory_order_relaxed);
}

static size_t bytes_of(size_t pages) {
  return pages << mu_arena.page_shift;
}

/* An extent that begins where a huge page may, if it is large enough for one and there is room to choose. */
static size_t extent(size_t pages, size_t align, bool *zeroed) {
  size_t huge = mu_huge_wanted(bytes_of(pages)) ? MU_HUGE_BYTES >> mu_arena.page_shift : 1;
  size_t page = huge > align ? mu_extent_alloc(pages, huge, zeroed) : MU_NO_PAGE;
  return page ? page : mu_extent_alloc(pages, align, zeroed);
}

/* Only what is fresh is mapped anew: what was used before keeps its pages. */
static bool make_huge(size_t page, size_t pages, bool zeroed) {
  return zeroed && mu_huge_wanted(bytes_of(pages)) && mu_huge_map(mu_page_address(page), bytes_of(pages));
}

void *mu_large_alloc(size_t size, size_t align, bool *zeroed) {
  if (size > PTRDIFF_MAX || align > PTRDIFF_MAX) return NULL;
  size_t pages = mu_max(mu_pages_for(size), 1), page = extent(pages, mu_max(mu_pages_for(align), 1), zeroed);
  if (!page) return NULL;
  note(mu_extent_at(page), MU_LARGE, pages, false, make_huge(page, pages, *zeroed));
  count(pages, true);
  if (mu_on_growth) mu_on_growth(pages);
  return mu_page_address(page);
}

static void give_up(size_t page, size_t pages, bool moved, bool huge) {
  bool clean = moved && mu_fresh_mapping(mu_page_address(page), bytes_of(pages));
  if (huge && !clean) mu_huge_end(mu_page_address(page), bytes_of(pages));
  count(pages, false);
  mu_extent_free(page, pages, clean);
  mu_note_activity();
}

bool mu_large_free(void *p) {
  struct mu_extent *m = large_at(p);
  if (!m) return false;
  size_t pages = m->pages;
  bool moved = m->moved, huge = m->huge;
  note(m, MU_NONE, 0, false, false);
  give_up(mu_page_of(p), pages, moved, huge);
  return true;
}

size_t mu_large_usable(const void *p) {
  const struct mu_extent *m = large_at(p);
  return m ? bytes_of(m->pages) : 0;
}

static void *shrink(struct mu_extent *m, void *p, size_t pages) {
  size_t old = m->pages;
  if (pages == old) return p;
  m->pages = (uint32_t)pages;
  give_up(mu_page_of(p) + pages, old - pages, m->moved, m->huge);
  return p;
}

/* Whether MREMAP_DONTUNMAP does what it says: an emulator may take it and unmap all the same (QEMU 7.2). */
static bool leaves_mapped(void) {
  static enum { UNKNOWN, LEAVES, UNMAPS } known;
  int err;
  if (known != UNKNOWN) return known == LEAVES;
  size_t page = mu_arena.page_size;
  char *two = mu_mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &err);
  if (!two) return false;
  long got = mu_sys_call(MU_SYS_mremap, (long)two, (long)page, (long)page,
                         MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, (long)(two + page), 0);
  known = got == (long)(two + page) && mu_sys_call(MU_SYS_getrandom, (long)two, 1, 0, 0, 0, 0) == 1 ? LEAVES : UNMAPS;
  mu_munmap(two, 2 * page);
  return known == LEAVES;
}

/* A new extent takes over the page tables; the old one is left mapped and empty. */
static void *move(struct mu_extent *m, void *p, size_t pages) {
  bool zeroed;
  size_t old = m->pages, bytes = bytes_of(old), to = extent(pages, 1, &zeroed);
  if (!to) return NULL;
  long got = mu_sys_call(MU_SYS_mremap, (long)p, (long)bytes, (long)bytes,
                         MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, (long)mu_page_address(to), 0);
  if (got < 0 && got > -4096) {
    /* It may have unmapped the target before it failed: only fresh memory can be handed out again. */
    if (mu_fresh_mapping(mu_page_address(to), bytes_of(pages))) mu_extent_free(to, pages, true);
    return NULL;
  }
  bool was_moved = m->moved, huge = m->huge;
  note(m, MU_NONE, 0, false, false);
  note(mu_extent_at(to), MU_LARGE, pages, true, huge);
  count(pages - old, true);
  if (was_moved || !leaves_mapped())
    mu_fresh_mapping(p, bytes);
  else if (huge)
    mu_huge_end(p, bytes);
  if (huge) mu_huge_moved(mu_page_address(to), bytes);
  if (huge && zeroed) mu_huge_map(mu_page_address(to + old), bytes_of(pages - old));
  mu_extent_free(mu_page_of(p), old, true);
  return mu_page_address(to);
}

static bool may_become_huge(size_t pages) {
  return mu_huge_given() && mu_huge_wanted(bytes_of(pages));
}

void *mu_large_resize(void *p, size_t size) {
  struct mu_extent *m = large_at(p);
  if (!m || size > PTRDIFF_MAX) return NULL;
  size_t pages = mu_max(mu_pages_for(size), 1), old = m->pages;
  bool zeroed;
  if (pages <= old) return shrink(m, p, pages);
  if (mu_extent_grow(mu_page_of(p), old, pages - old, &zeroed)) {
    if (zeroed && (m->huge || may_become_huge(pages)))
      m->huge |= mu_huge_map((char *)p + bytes_of(old), bytes_of(pages - old));
    m->pages = (uint32_t)pages;
    count(pages - old, true);
    return p;
  }
  /* What has no huge pages would never have any: it is copied once. */
  if (!m->huge && may_become_huge(pages)) return NULL;
  return bytes_of(old) >= MIN_MOVE_BYTES ? move(m, p, pages) : NULL;
}
