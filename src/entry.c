/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The malloc family. Results, errno and corner cases are glibc's: malloc(0) is a unique object, realloc(p, 0) frees,
 * memalign rounds a bad alignment up, free keeps errno.
 */
#include "src/entry.h"
#include "src/aside.h"
#include "src/fork.h"
#include "src/guard.h"
#include "src/large.h"
#include "src/log.h"
#include "src/nested.h"
#include "src/options.h"
#include "src/profile.h"
#include "src/thread_local_heap.h"
#include <errno.h>
#include <string.h>
#include <sys/auxv.h>

static MU_COLD void *out_of_memory(void) {
  errno = ENOMEM;
  return NULL;
}

static MU_NOINLINE void *large(size_t size, size_t align, bool *zeroed) {
  void *p = mu_large_alloc(size, align, zeroed);
  return p ? p : out_of_memory();
}

/* A slot of the class, perhaps marked (mu_is_fresh). */
MU_AT_START static void *slot_of(unsigned c) {
  void *p = mu_vector_pop(&mu_own_heap->vectors[c]);
  if (!p) p = mu_malloc_refill(c);
  return p ? p : out_of_memory();
}

/* The run of small objects that p points into, or NULL. */
static const struct mu_run *small_run(const void *p) {
  size_t page = mu_page_of(p);
  if (page >= mu_arena_limit()) return NULL;
  const struct mu_run *run = mu_run_of(page);
  return run->in_use ? run : NULL;
}

MU_AT_START static void *allocate(size_t size, bool *zeroed) {
  if (size > MU_MAX_SMALL) return large(size, 1, zeroed);
  void *slot = slot_of(mu_class_of(size));
  *zeroed = mu_is_fresh(slot);
  return mu_unmarked(slot);
}

/* ---- guards: see guard.h ----------------------------------------------------------------------------------------- */

static inline bool guards(void) {
  return MU_UNLIKELY(mu_options.check > 1);
}

/* Bytes of its slot or extent, 0 when p is not the start of an allocation, as far as that is known at once. */
MU_AT_START static size_t room_of(const void *p) {
  const struct mu_run *run = small_run(p);
  return run ? mu_classes[run->size_class].size : mu_large_usable(p);
}

/* 0 bytes are one, so that a size of 0 is that of no object. */
static MU_COLD void *guarded(void *p, size_t size) {
  if (p) mu_guard_set(p, mu_max(size, 1), room_of(p));
  return p;
}

/* False when there is nothing to be freed at p: with the checking option only. */
static MU_COLD bool is_live(const char *call, const void *p) {
  const struct mu_run *run = small_run(p);
  enum mu_slot_is is = run ? mu_slot_is(p) : mu_large_usable(p) ? MU_SLOT_LIVE : MU_SLOT_NONE;
  if (is == MU_SLOT_LIVE) return true;
  mu_misuse(is == MU_SLOT_FREE ? "%s(%p): freed before" : "%s(%p): not the start of an allocation, or freed before",
            call, p);
  return false;
}

/* It is reported once. */
static MU_COLD void check_guard(const char *call, void *p) {
  size_t room = room_of(p), size = mu_guard_size(p, room);
  const void *at = mu_guard_broken(p, room);
  if (!at) return;
  mu_misuse("%s(%p): written past its end of %zu bytes, at %p", call, p, size, at);
  mu_guard_set(p, size, room);
}

/* ---- malloc and free --------------------------------------------------------------------------------------------- */

static inline void *seen(void *p, size_t size) {
  if (MU_UNLIKELY(mu_profile_on)) mu_profile_alloc(p, size);
  return p;
}

static inline void *malloc_inside(size_t size, bool *zeroed) {
  if (!guards()) return seen(allocate(size, zeroed), size);
  if (size > PTRDIFF_MAX) return out_of_memory();
  return seen(guarded(allocate(mu_max(size, 1) + MU_GUARD_BYTES, zeroed), size), size);
}

/* In a signal handler that has interrupted its thread in the heap. */
static MU_COLD void *nested(size_t size, size_t align) {
  void *p = mu_nested_malloc(size, align);
  return p ? p : out_of_memory();
}

/* *zeroed: all of it is known to read as zeros. */
MU_AT_START static MU_NOINLINE void *malloc_slow(size_t size, bool *zeroed) {
  *zeroed = false;
  if (!mu_heap_ready()) return mu_aside ? mu_next_malloc(size) : out_of_memory();
  if (!mu_heap_enter()) return nested(size, 1);
  void *p = malloc_inside(size, zeroed);
  mu_heap_leave();
  return p;
}

/* The fast way, or NULL: before the thread has a heap, its vectors are empty, and the table says class 0, which never
 * has anything. */
MU_RACY static inline void *malloc_fast(size_t size) {
  return size <= MU_TABLE_MAX ? mu_vector_pop(mu_vector_of(mu_class_table[(size + 15) >> 4])) : NULL;
}

MU_AT_START static MU_NOINLINE void *malloc_medium(size_t size) {
  bool zeroed;
  void *slot = size <= MU_MAX_SMALL ? mu_vector_pop(mu_vector_of(mu_class_of_medium(size))) : NULL;
  return MU_LIKELY(slot != NULL) ? mu_unmarked(slot) : malloc_slow(size, &zeroed);
}

MU_AT_START void *mu_malloc(size_t size) {
  bool zeroed;
  if (MU_UNLIKELY(size > MU_TABLE_MAX)) return malloc_medium(size);
  void *p = malloc_fast(size);
  return MU_LIKELY(p != NULL) ? p : malloc_slow(size, &zeroed);
}

/* Freed twice without another free between: seen at once. Later ones are found when the slot goes back to its span. */
static bool freed_last(const struct mu_shuffle_vector *v, const void *p) {
  return mu_vector_count(v) && v->top[-1] == p;
}

/* Somebody else's: where there is no heap, or where this library has come later than another malloc, rightly so. */
static MU_COLD void free_foreign(void *p) {
  if (mu_nested_free(p) || mu_foreign_free(p)) return;
  if (!mu_heap_ready() && mu_aside)
    mu_next_free(p);
  else
    mu_misuse("free(%p): not an allocation of this allocator", p);
}

MU_AT_START static void free_inside(void *p) {
  size_t page = mu_page_of(p);
  mu_check_forked();
  if (MU_UNLIKELY(mu_profile_on)) mu_profile_free(p);
  if (MU_UNLIKELY(mu_options.check)) {
    if (!is_live("free", p)) return;
    if (guards()) check_guard("free", p);
  }
  const struct mu_run *run = mu_run_of(page);
  unsigned c = mu_arena.page_map[page];
  if (c && freed_last(&mu_own_heap->vectors[c], p))
    mu_misuse("free(%p): double free", p);
  else if (c)
    mu_free_overflow(p, c);
  else if (run->in_use)
    mu_give_back(run->size_class, &p, 1);
  else if (!mu_large_free(p))
    mu_misuse("free(%p): not the start of an allocation, or freed before", p);
}

MU_AT_START static MU_NOINLINE void free_slow(void *p) {
  if (!p) return;
  if (mu_page_of(p) >= mu_arena_limit()) {
    free_foreign(p);
  } else if (mu_heap_enter()) {
    free_inside(p);
    mu_heap_leave();
  } else {
    mu_nested_defer(p);
  }
}

MU_AT_START void mu_free(void *p) {
  size_t page = mu_page_of(p);
  if (MU_LIKELY(page < mu_arena_limit()) && MU_LIKELY(mu_vector_push_new(mu_vector_of(mu_arena.page_map[page]), p)))
    return;
  free_slow(p);
}

MU_AT_START void *mu_calloc(size_t count, size_t size) {
  size_t bytes;
  if (MU_UNLIKELY(__builtin_mul_overflow(count, size, &bytes))) return out_of_memory();
  bool zeroed = false;
  void *p = malloc_fast(bytes);
  if (MU_UNLIKELY(!p)) p = malloc_slow(bytes, &zeroed);
  return p && !zeroed ? memset(p, 0, bytes) : p;
}

size_t mu_usable_size(const void *p) {
  if (!p) return 0;
  size_t room = room_of(p);
  return guards() && room ? mu_guard_size(p, room) : room;
}

bool mu_is_ours(const void *p) {
  size_t page = mu_page_of(p);
  return (page >= MU_RUN_PAGES && page < mu_arena_limit()) || mu_nested_usable(p);
}

MU_AT_START static MU_NOINLINE void *copy_to(void *p, size_t old, size_t size) {
  void *q = mu_malloc(size);
  if (!q) return NULL;
  memcpy(q, p, mu_min(old, size));
  mu_free(p);
  return q;
}

/* What was there, if anything, is lost; the program shall go on. */
static MU_COLD void *realloc_wrong(void *p, size_t size) {
  bool foreign = mu_page_of(p) >= mu_arena_limit();
  size_t usable = foreign ? mu_nested_usable(p) : 0;
  void *q;
  if (usable) return size <= usable ? p : copy_to(p, usable, size);
  if (foreign && mu_foreign_realloc(p, size, &q)) return q;
  if (foreign && !mu_heap_ready() && mu_aside) return mu_next_realloc(p, size);
  mu_misuse("realloc(%p): not the start of an allocation, or freed before", p);
  return mu_malloc(size);
}

static MU_COLD void *realloc_checked(void *p, size_t size) {
  bool entered = mu_heap_enter(), live = !entered || is_live("realloc", p);
  if (entered) mu_heap_leave();
  if (!live) return mu_malloc(size);
  if (guards()) check_guard("realloc", p);
  return size > PTRDIFF_MAX ? out_of_memory() : copy_to(p, mu_usable_size(p), size);
}

static void *resize_inside(void *p, size_t size) {
  if (MU_LIKELY(!mu_profile_on)) return mu_large_resize(p, size);
  struct mu_profile_sample sample = mu_profile_take(p); /* before its address may be somebody else's */
  void *q = mu_large_resize(p, size);
  if (!q) mu_profile_put_back(&sample);
  return seen(q, size);
}

/* In place or by moving its pages, or NULL. A profile takes it as freed and allocated. */
static MU_NOINLINE void *resize_large(void *p, size_t size) {
  if (!mu_heap_enter()) return NULL;
  void *q = resize_inside(p, size);
  mu_heap_leave();
  return q;
}

MU_AT_START void *mu_realloc(void *p, size_t size) {
  if (!p) return mu_malloc(size);
  if (size == 0) {
    mu_free(p);
    return NULL;
  }
  size_t usable = room_of(p);
  if (MU_UNLIKELY(usable == 0)) return realloc_wrong(p, size);
  if (MU_UNLIKELY(mu_options.check)) return realloc_checked(p, size);
  if (size > MU_MAX_SMALL && usable > MU_MAX_SMALL) {
    void *q = resize_large(p, size);
    if (q) return q;
  }
  /* In place while at least half of it stays used. */
  if (size <= usable && size > usable / 2) return p;
  if (size > PTRDIFF_MAX) return out_of_memory();
  void *q = copy_to(p, usable, size);
  return q || size > usable ? q : p; /* shrinking does not fail */
}

/* Spans of objects that ask for a large alignment are left alone where pins cannot be seen: they are likely I/O
 * buffers. */
enum { IO_ALIGNMENT = 512 };

/* The class whose slots are aligned by their size alone; 0, which never has anything, when there is none. */
static inline unsigned aligned_class(size_t align, size_t size) {
  size_t least = mu_max(size, align);
  if (least > MU_MAX_SMALL || align > mu_arena.page_size) return 0;
  unsigned c = mu_class_of(least);
  while (mu_classes[c].size & (align - 1)) c++;
  return c;
}

static void *aligned_small(unsigned c, size_t align) {
  void *p = mu_unmarked(slot_of(c));
  if (p && align >= IO_ALIGNMENT) mu_span_mark_aligned(p);
  return p;
}

static void *allocate_aligned(size_t align, size_t size) {
  bool zeroed;
  unsigned c = aligned_class(align, size);
  void *p = c ? aligned_small(c, align) : NULL;
  return p ? p : large(mu_max(size, 1), align, &zeroed);
}

/* As for malloc, whoever has to see the call has empty vectors. Before this thread has a heap, another may be at making
 * the classes. */
static inline void *aligned_fast(size_t align, size_t size) {
  if (!mu_has_heap()) return NULL;
  void *p = mu_unmarked(mu_vector_pop(mu_vector_of(aligned_class(align, size))));
  if (p && align >= IO_ALIGNMENT && mu_heap_enter()) {
    mu_span_mark_aligned(p);
    mu_heap_leave();
  }
  return p;
}

static void *aligned(size_t align, size_t size) {
  if (align <= 16) return mu_malloc(size);
  void *fast = aligned_fast(align, size);
  if (MU_LIKELY(fast != NULL)) return fast;
  if (!mu_heap_ready() && mu_aside) return mu_next_memalign(align, size);
  if (!mu_heap_ready() || size > PTRDIFF_MAX) return out_of_memory();
  if (!mu_heap_enter()) return nested(size, align);
  void *p = guards() ? guarded(allocate_aligned(align, mu_max(size, 1) + MU_GUARD_BYTES), size)
                     : allocate_aligned(align, size);
  seen(p, size);
  mu_heap_leave();
  return p;
}

void *mu_memalign(size_t align, size_t size) {
  if (align > SIZE_MAX / 2 + 1) {
    errno = EINVAL;
    return NULL;
  }
  if (align & (align - 1)) align = (size_t)1 << (mu_log2(align) + 1);
  return aligned(align, size);
}

/* ---- the exported names ------------------------------------------------------------------------------------------ */

#ifndef MU_PREFIXED_ONLY
static const char *const linked __attribute__((used)) = &mu_init_linked;

#define ALIAS(target) __attribute__((alias(#target), visibility("default")))

MU_EXPORT void *malloc(size_t size) ALIAS(mu_malloc);
MU_EXPORT void free(void *p) ALIAS(mu_free);
MU_EXPORT void cfree(void *p) ALIAS(mu_free);
MU_EXPORT void *calloc(size_t count, size_t size) ALIAS(mu_calloc);
MU_EXPORT void *realloc(void *p, size_t size) ALIAS(mu_realloc);
MU_EXPORT void *memalign(size_t align, size_t size) ALIAS(mu_memalign);
MU_EXPORT void *aligned_alloc(size_t align, size_t size) ALIAS(mu_memalign);

MU_EXPORT void *reallocarray(void *p, size_t count, size_t size);
MU_EXPORT int posix_memalign(void **out, size_t align, size_t size);
MU_EXPORT void *valloc(size_t size);
MU_EXPORT void *pvalloc(size_t size);
MU_EXPORT size_t malloc_usable_size(void *p);
MU_EXPORT void free_sized(void *p, size_t size);
MU_EXPORT void free_aligned_sized(void *p, size_t align, size_t size);

void *reallocarray(void *p, size_t count, size_t size) {
  size_t bytes;
  return __builtin_mul_overflow(count, size, &bytes) ? out_of_memory() : mu_realloc(p, bytes);
}

int posix_memalign(void **out, size_t align, size_t size) {
  if (align % sizeof(void *) || align & (align - 1) || align == 0) return EINVAL;
  int saved = errno;
  void *p = aligned(align, size);
  errno = saved;
  if (!p) return ENOMEM;
  *out = p;
  return 0;
}

static size_t page_size(void) {
  return getauxval(AT_PAGESZ); /* there may be no heap */
}

void *valloc(size_t size) {
  return aligned(page_size(), size);
}

void *pvalloc(size_t size) {
  if (size > PTRDIFF_MAX) return out_of_memory();
  return aligned(page_size(), mu_round_up(mu_max(size, 1), page_size()));
}

size_t malloc_usable_size(void *p) {
  if (!p || mu_page_of(p) < mu_arena_limit()) return mu_usable_size(p);
  size_t nested_bytes = mu_nested_usable(p);
  if (nested_bytes) return nested_bytes;
  return mu_aside ? mu_next_usable(p) : mu_foreign_usable(p);
}

void free_sized(void *p, size_t size) {
  (void)size;
  mu_free(p);
}

void free_aligned_sized(void *p, size_t align, size_t size) {
  (void)align;
  (void)size;
  mu_free(p);
}
#endif
