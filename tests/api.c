/* SPDX-License-Identifier: Apache-2.0 */
/* The whole malloc interface, as glibc 2.36 behaves, and the public functions of the library when it is there. */
#include "test.h"

#include <malloc.h>
#include <stdalign.h>

static struct mesh_api api;
static bool exact; /* false under an allocator known not to do everything as glibc does */

/* Like CHECK where another allocator may differ from glibc. */
#define CHECK_EXACT(condition)                                                                                         \
  do {                                                                                                                 \
    if (!(condition)) {                                                                                                \
      if (exact) FAIL("%s", #condition);                                                                               \
      deviation(__LINE__, #condition);                                                                                 \
    }                                                                                                                  \
  } while (0)

enum { ALIGNMENT = 2 * sizeof(size_t), MiB = 1 << 20 };
static const size_t too_big = (size_t)PTRDIFF_MAX + 1;
static size_t page_size;

static void deviation(int line, const char *text) {
  static int last_line;
  if (line != last_line) printf("  other malloc, line %d: not so: %s\n", line, text);
  last_line = line;
}

static bool aligned(const void *p, size_t alignment) {
  return (uintptr_t)p % alignment == 0;
}

static bool all_zero(const void *p, size_t n) {
  const unsigned char *b = p;
  return n == 0 || (b[0] == 0 && memcmp(b, b + 1, n - 1) == 0);
}

#define CHECK_NO_MEMORY(expression)                                                                                    \
  do {                                                                                                                 \
    errno = 0;                                                                                                         \
    void *volatile no_memory_ = (expression);                                                                          \
    CHECK(no_memory_ == NULL && #expression);                                                                          \
    CHECK_EXACT(errno == ENOMEM && #expression);                                                                       \
  } while (0)

/* Sizes around everything that may be a boundary, ascending. */
static size_t boundary_sizes[256];
static size_t boundary_count;

static void make_boundary_sizes(void) {
  size_t n = 0;
  for (size_t size = 1; size <= 48; size += 5) boundary_sizes[n++] = size;
  for (size_t power = 64; power <= MiB; power *= 2) {
    boundary_sizes[n++] = power - 1;
    boundary_sizes[n++] = power;
    boundary_sizes[n++] = power + 1;
    boundary_sizes[n++] = power + power / 4;
    boundary_sizes[n++] = power + power / 2 + 8;
  }
  while (boundary_sizes[n - 1] > MiB) n--;
  boundary_count = n;
}

static void test_malloc(void) {
  enum { N = 1000 };
  static void *p[N];
  for (size_t i = 0; i < N; i++) {
    p[i] = malloc(opaque_size(0));
    CHECK(p[i]);
    CHECK_EXACT(aligned(p[i], ALIGNMENT));
  }
  for (size_t i = 0; i < N; i++)
    for (size_t j = 0; j < i; j++) CHECK(p[i] != p[j]);
  for (size_t i = 0; i < N; i++) free(p[i]);
  free(opaque(NULL));

  for (size_t size = 1; size <= 9000; size++) {
    void *q = malloc(size);
    CHECK(q);
    CHECK_EXACT(aligned(q, ALIGNMENT));
    CHECK(malloc_usable_size(q) >= size);
    free(q);
  }
  CHECK(malloc_usable_size(NULL) == 0);
  CHECK_NO_MEMORY(malloc(opaque_size(too_big)));
  CHECK_NO_MEMORY(malloc(opaque_size(SIZE_MAX)));
  CHECK_NO_MEMORY(malloc(opaque_size(SIZE_MAX - 4096)));
  CHECK_NO_MEMORY(malloc(opaque_size(PTRDIFF_MAX)));
  CHECK_NO_MEMORY(malloc(opaque_size(PTRDIFF_MAX - 100000)));
}

/* All usable bytes are the caller's, and nobody else's. */
static void test_usable_size(void) {
  enum { N = 3000 };
  static void *p[N];
  static size_t usable[N];
  struct rng rng = rng_from(17, 0);
  for (size_t i = 0; i < N; i++) {
    size_t size = rng_size(&rng, i % 100 ? 13 : 20);
    p[i] = malloc(size);
    CHECK(p[i]);
    usable[i] = malloc_usable_size(p[i]);
    CHECK(usable[i] >= size);
    pattern_fill(opaque(p[i]), usable[i], i);
  }
  for (size_t i = 0; i < N; i++) {
    CHECK_PATTERN(p[i], usable[i], i);
    free(p[i]);
  }
}

static void test_calloc(void) {
  CHECK_NO_MEMORY(calloc(opaque_size(SIZE_MAX / 2 + 1), opaque_size(2)));
  CHECK_NO_MEMORY(calloc(opaque_size(SIZE_MAX), opaque_size(SIZE_MAX)));
  CHECK_NO_MEMORY(calloc(opaque_size((size_t)1 << 32), opaque_size((size_t)1 << 32)));
  CHECK_NO_MEMORY(calloc(opaque_size(SIZE_MAX / 16 + 2), opaque_size(16)));
  CHECK_NO_MEMORY(calloc(opaque_size(16), opaque_size(SIZE_MAX / 16 + 2)));
  CHECK_NO_MEMORY(calloc(opaque_size(1), opaque_size(too_big)));
  CHECK_NO_MEMORY(calloc(opaque_size(SIZE_MAX), opaque_size(1)));

  void *a = calloc(opaque_size(0), opaque_size(8));
  void *b = calloc(opaque_size(8), opaque_size(0));
  CHECK(a && b && a != b);
  free(a);
  free(b);

  /* Memory that was dirty before, of every size: small slots, whole pages, large blocks. */
  enum { N = 64 };
  void *p[N];
  for (size_t s = 0; s < boundary_count; s++) {
    size_t size = boundary_sizes[s];
    size_t n = size > 64 * 1024 ? 8 : N;
    for (size_t i = 0; i < n; i++) {
      p[i] = malloc(size);
      CHECK(p[i]);
      memset(opaque(p[i]), 0xff, malloc_usable_size(p[i]));
    }
    for (size_t i = 0; i < n; i++) free(p[i]);
    for (size_t i = 0; i < n; i++) {
      p[i] = i % 2 ? calloc(1, size) : calloc(size, 1);
      CHECK(p[i]);
      CHECK_EXACT(aligned(p[i], ALIGNMENT));
      CHECKF(all_zero(p[i], size), "calloc of %zu bytes", size);
      memset(opaque(p[i]), 0xff, size);
    }
    for (size_t i = 0; i < n; i++) free(p[i]);
  }
}

static void test_realloc(void) {
  void *p = realloc(opaque(NULL), 100);
  CHECK(p);
  pattern_fill(p, 100, 1);
  p = realloc(p, 200);
  CHECK_PATTERN(p, 100, 1);
  void *gone = realloc(opaque(p), opaque_size(0));
  CHECK_EXACT(gone == NULL);
  if (gone) free(gone);
  p = realloc(opaque(NULL), opaque_size(0));
  CHECK(p);
  free(p);

  static const size_t refusals[] = {1, 100, 4096, 40000, 300000, 4 * MiB};
  for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
    size_t size = refusals[i];
    unsigned char *q = malloc(size);
    CHECK(q);
    pattern_fill(q, size, i);
    CHECK_NO_MEMORY(realloc(opaque(q), opaque_size(too_big)));
    CHECK_NO_MEMORY(realloc(opaque(q), opaque_size(SIZE_MAX)));
    CHECK_NO_MEMORY(realloc(opaque(q), opaque_size(PTRDIFF_MAX)));
    CHECK_NO_MEMORY(reallocarray(opaque(q), opaque_size(SIZE_MAX / 2 + 1), opaque_size(2)));
    CHECK_NO_MEMORY(reallocarray(opaque(q), opaque_size(SIZE_MAX), opaque_size(SIZE_MAX)));
    CHECK_NO_MEMORY(reallocarray(opaque(q), opaque_size((size_t)1 << 33), opaque_size((size_t)1 << 33)));
    CHECK_PATTERN(q, size, i);
    CHECK(malloc_usable_size(q) >= size);
    memset(q, 0xaa, size);
    free(q);
  }

  p = reallocarray(opaque(NULL), 10, 30);
  CHECK(p && malloc_usable_size(p) >= 300);
  pattern_fill(p, 300, 2);
  p = reallocarray(p, 1000, 300);
  CHECK(p && malloc_usable_size(p) >= 300000);
  CHECK_PATTERN(p, 300, 2);
  gone = reallocarray(opaque(p), opaque_size(0), opaque_size(8));
  CHECK_EXACT(gone == NULL);
  if (gone) free(gone);

  /* Every transition, and a third size after it. */
  for (size_t i = 0; i < boundary_count; i++) {
    for (size_t j = 0; j < boundary_count; j++) {
      size_t from = boundary_sizes[i];
      size_t to = boundary_sizes[j];
      uint64_t seed = i * 1000 + j;
      void *q = j % 7 ? malloc(from) : memalign(64, from);
      CHECK(q);
      pattern_fill(q, from, seed);
      q = realloc(q, to);
      CHECK(q);
      CHECK_EXACT(aligned(q, ALIGNMENT));
      CHECK(malloc_usable_size(q) >= to);
      size_t kept = from < to ? from : to;
      if (pattern_check(q, kept, seed) != kept) FAIL("realloc from %zu to %zu loses content", from, to);
      if (to > from) pattern_fill(q, to, seed);
      size_t last = boundary_sizes[(i * 31 + j * 17) % boundary_count];
      q = realloc(q, last);
      CHECK(q);
      kept = to < last ? to : last;
      if (pattern_check(q, kept, seed) != kept) FAIL("realloc from %zu to %zu loses content", to, last);
      free(q);
    }
  }

  /* Byte by byte, as a careless buffer grows and shrinks, with a neighbour that must not change. */
  unsigned char *text = NULL;
  unsigned char *neighbour = malloc(64);
  CHECK(neighbour);
  pattern_fill(neighbour, 64, 9);
  for (size_t n = 1; n <= 20000; n++) {
    text = realloc(text, n);
    CHECK(text);
    text[n - 1] = (unsigned char)(n * 7);
  }
  for (size_t n = 20000; n > 0; n -= n > 37 ? 37 : 1) {
    text = realloc(text, n);
    CHECK(text);
    CHECK(text[n - 1] == (unsigned char)(n * 7) && text[0] == 7 && text[n / 2] == (unsigned char)((n / 2 + 1) * 7));
  }
  free(text);
  CHECK_PATTERN(neighbour, 64, 9);
  free(neighbour);
}

static void *aligned_by(int how, size_t alignment, size_t size) {
  void *p = NULL;
  if (how == 0) return memalign(alignment, size);
  if (how == 1) return aligned_alloc(alignment, size);
  CHECK(posix_memalign(&p, alignment, size) == 0);
  return p;
}

static void test_alignment(void) {
  size_t sizes[] = {0, 1, 17, 100, 1000, 4096, 5000, 70000, 3 * MiB};
  enum { SIZES = sizeof sizes / sizeof *sizes };
  for (int how = 0; how < 3; how++) {
    for (size_t alignment = how == 2 ? sizeof(void *) : 1; alignment <= 2 * MiB; alignment *= 2) {
      void *p[SIZES][3];
      sizes[SIZES - 1] = alignment == 64 || alignment >= MiB ? 3 * MiB : 300000;
      for (size_t s = 0; s < SIZES; s++) {
        for (size_t i = 0; i < 3; i++) {
          p[s][i] = aligned_by(how, alignment, sizes[s]);
          CHECKF(p[s][i], "alignment %zu, size %zu", alignment, sizes[s]);
          CHECKF(aligned(p[s][i], alignment), "alignment %zu, size %zu", alignment, sizes[s]);
          CHECK(malloc_usable_size(p[s][i]) >= sizes[s]);
          pattern_fill(p[s][i], sizes[s], s * 3 + i);
        }
      }
      for (size_t s = 0; s < SIZES; s++) {
        for (size_t i = 0; i < 3; i++) {
          CHECK_PATTERN(p[s][i], sizes[s], s * 3 + i);
          if (i == 2) {
            p[s][i] = realloc(p[s][i], sizes[s] * 2 + 10);
            CHECK_PATTERN(p[s][i], sizes[s], s * 3 + i);
          } else if (i == 1 && sizes[s] > 1) {
            p[s][i] = realloc(p[s][i], sizes[s] / 2);
            CHECK_PATTERN(p[s][i], sizes[s] / 2, s * 3 + i);
          }
          free(p[s][i]);
        }
      }
    }
  }

  /* glibc rounds an alignment that is no power of two up. */
  static const size_t odd[] = {0, 3, 9, 17, 24, 33, 48, 100, 4095, 4097, 5000, 70000};
  for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
    size_t rounded = 1;
    while (rounded < odd[i]) rounded *= 2;
    void *p = memalign(opaque_size(odd[i]), 200);
    CHECK_EXACT(p != NULL);
    if (!p) continue;
    CHECK_EXACT(aligned(p, rounded));
    memset(p, 1, 200);
    free(p);
  }

  if (exact) {
    errno = 0;
    void *volatile refused = memalign(opaque_size(SIZE_MAX / 2 + 2), 1);
    CHECK(refused == NULL && errno == EINVAL);
    CHECK_NO_MEMORY(memalign(opaque_size((size_t)1 << 62), opaque_size(1)));
    CHECK_NO_MEMORY(aligned_alloc(opaque_size((size_t)1 << 62), opaque_size(1)));
    CHECK_NO_MEMORY(valloc(opaque_size(SIZE_MAX)));
    CHECK_NO_MEMORY(pvalloc(opaque_size(SIZE_MAX)));
    CHECK_NO_MEMORY(pvalloc(opaque_size(SIZE_MAX - 100)));
  }
  CHECK_NO_MEMORY(memalign(64, opaque_size(SIZE_MAX)));
  CHECK_NO_MEMORY(memalign(64, opaque_size(SIZE_MAX - 63)));
  CHECK_NO_MEMORY(memalign(2 * MiB, opaque_size(PTRDIFF_MAX)));
  CHECK_NO_MEMORY(aligned_alloc(64, opaque_size(SIZE_MAX - 63)));
  CHECK_NO_MEMORY(aligned_alloc(4096, opaque_size(too_big)));
  CHECK_NO_MEMORY(valloc(opaque_size(too_big)));

  static const size_t bad[] = {0, 1, 2, 4, 3, 12, 24, 40, 100, 4097, 4104, SIZE_MAX, SIZE_MAX - 7};
  char object;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    void *p = &object;
    errno = 1234;
    int result = posix_memalign(&p, opaque_size(bad[i]), 100);
    CHECKF(result == EINVAL, "alignment %zu: returned %d", bad[i], result);
    CHECKF(p == &object, "alignment %zu", bad[i]);
    CHECKF(errno == 1234, "alignment %zu", bad[i]);
  }
  static const size_t large[] = {SIZE_MAX, SIZE_MAX - 64, (size_t)PTRDIFF_MAX + 1, PTRDIFF_MAX};
  for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
    void *p = &object;
    CHECK(posix_memalign(&p, 64, opaque_size(large[i])) == ENOMEM);
    CHECK_EXACT(p == &object);
    p = &object;
    CHECK(posix_memalign(&p, MiB, opaque_size(large[i])) == ENOMEM);
    CHECK_EXACT(p == &object);
  }

  for (size_t size = 0; size < 3 * page_size; size += page_size / 2 - 1) {
    void *p = valloc(size);
    CHECK(p && aligned(p, page_size) && malloc_usable_size(p) >= size);
    memset(p, 1, size);
    void *q = pvalloc(size);
    size_t rounded = (size + page_size - 1) / page_size * page_size;
    CHECK(q && aligned(q, page_size) && malloc_usable_size(q) >= rounded);
    memset(q, 1, rounded);
    free(p);
    free(q);
  }
}

static void test_errno(void) {
  enum { N = 6000 };
  static void *p[N];
  static const size_t sizes[] = {1, 100, 1000, 5000, 200000, 4 * MiB, 64 * MiB};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    size_t n = sizes[s] > 5000 ? 4 : N;
    for (size_t i = 0; i < n; i++) {
      p[i] = malloc(sizes[s]);
      CHECK(p[i]);
      *(volatile char *)p[i] = 1;
    }
    for (size_t i = 0; i < n; i++) {
      errno = 4321;
      free(p[i]);
      CHECKF(errno == 4321, "free of %zu bytes", sizes[s]);
    }
  }
  errno = 4321;
  free(opaque(NULL));
  CHECK(errno == 4321);
}

static void test_huge(void) {
  size_t size = (size_t)1 << 30;
  for (int round = 0; round < 3; round++) {
    unsigned char *p = round == 1 ? calloc(1, size) : malloc(size);
    CHECK(p);
    CHECK(malloc_usable_size(p) >= size);
    for (size_t at = 0; at < size; at += size / 16) {
      if (round == 1) CHECK(p[at] == 0);
      p[at] = 1;
    }
    p[size - 1] = 2;
    free(p);
  }
  unsigned char *p = malloc(32 * MiB);
  CHECK(p);
  pattern_fill(p, 32 * MiB, 5);
  p = realloc(p, (size_t)1 << 29);
  CHECK(p);
  CHECK_PATTERN(p, 32 * MiB, 5);
  p[((size_t)1 << 29) - 1] = 1;
  p = realloc(p, MiB);
  CHECK(p);
  CHECK_PATTERN(p, MiB, 5);
  p = realloc(p, 50);
  CHECK(p);
  CHECK_PATTERN(p, 50, 5);
  free(p);

  /* Whether these fit is the kernel's business, but the answer has to be one of two. */
  for (unsigned bits = 36; bits < 63; bits++) {
    errno = 0;
    p = malloc(opaque_size((size_t)1 << bits));
    if (!p) CHECK_EXACT(errno == ENOMEM);
    if (p) p[((size_t)1 << bits) - 1] = 1;
    free(p);
  }
}

static void test_sized_frees(void) {
  void (*free_sized_)(void *, size_t);
  void (*free_aligned_sized_)(void *, size_t, size_t);
  bool first = mesh_api_symbol("free_sized", &free_sized_);
  bool second = mesh_api_symbol("free_aligned_sized", &free_aligned_sized_);
  if (!first || !second) {
    printf("  skipped part: free_sized, free_aligned_sized are not there\n");
    return;
  }
  free_sized_(NULL, 0);
  free_aligned_sized_(NULL, 64, 0);
  for (size_t s = 0; s < boundary_count; s++) {
    for (int i = 0; i < 10; i++) {
      void *p = malloc(boundary_sizes[s]);
      CHECK(p);
      free_sized_(p, boundary_sizes[s]);
      p = aligned_alloc(256, boundary_sizes[s]);
      CHECK(p);
      free_aligned_sized_(p, 256, boundary_sizes[s]);
    }
  }
  void *p = malloc(0);
  free_sized_(p, 0);
}

#ifdef __GLIBC__
static void test_introspection(void) {
  void *keep[256];
  size_t held = 0;
  for (size_t i = 0; i < 256; i++) {
    size_t size = i % 2 ? 20000 : 100000;
    keep[i] = malloc(size);
    CHECK(keep[i]);
    memset(opaque(keep[i]), 1, size);
    held += size;
  }
  void *large = malloc(16 * MiB);
  CHECK(large);
  memset(opaque(large), 1, 16 * MiB);
  held += 16 * MiB;
  struct mallinfo2 info = mallinfo2();
  printf("  mallinfo2: arena=%zu uordblks=%zu fordblks=%zu hblks=%zu hblkhd=%zu, held=%zu\n", info.arena, info.uordblks,
         info.fordblks, info.hblks, info.hblkhd, held);
  CHECK_EXACT(info.uordblks + info.hblkhd >= held);
  CHECK_EXACT(info.uordblks + info.hblkhd < held + ((size_t)1 << 30));
  CHECK_EXACT(info.uordblks <= info.arena + info.hblkhd);
  for (size_t i = 0; i < 256; i++) free(keep[i]);
  free(large);
  struct mallinfo2 after = mallinfo2();
  CHECK_EXACT(after.uordblks + after.hblkhd < info.uordblks + info.hblkhd);

  int trimmed = malloc_trim(0);
  CHECK(trimmed == 0 || trimmed == 1);
  trimmed = malloc_trim(MiB);
  CHECK(trimmed == 0 || trimmed == 1);

  char *text = NULL;
  size_t length = 0;
  FILE *file = open_memstream(&text, &length);
  CHECK(file);
  CHECK(malloc_info(0, file) == 0);
  CHECK(fclose(file) == 0);
  CHECK(length > 8 && strncmp(text, "<malloc", 7) == 0);
  CHECK(strstr(text, "</malloc>"));
  free(text);
  file = tmpfile();
  if (file) {
    CHECK(malloc_info(opaque_size(1) ? 1 : 0, file) == EINVAL);
    CHECK(malloc_info(0, file) == 0);
    char head[8] = "";
    rewind(file);
    CHECK(fread(head, 1, 7, file) == 7 && strcmp(head, "<malloc") == 0);
    fclose(file);
  } else {
    printf("  skipped part: no tmpfile\n");
  }

  /* malloc_stats writes to standard error, which is looked at elsewhere. */
  fflush(stderr);
  int saved = dup(STDERR_FILENO);
  int sink[2];
  CHECK(saved >= 0 && pipe(sink) == 0 && dup2(sink[1], STDERR_FILENO) >= 0);
  malloc_stats();
  fflush(stderr);
  CHECK(dup2(saved, STDERR_FILENO) >= 0);
  close(saved);
  close(sink[1]);
  char byte;
  bool wrote = read(sink[0], &byte, 1) == 1;
  CHECK_EXACT(wrote);
  close(sink[0]);

  CHECK(mallopt(M_MMAP_THRESHOLD, 128 * 1024) == 1);
  CHECK(mallopt(M_TRIM_THRESHOLD, 128 * 1024) == 1);
  CHECK(mallopt(M_ARENA_MAX, 4) == 1);
}
#else
static void test_introspection(void) {
  printf("  skipped part: what only glibc has\n");
}
#endif

/* Mixing two allocators in one process does not work: all of them are ours, or none. */
static void test_one_allocator(void) {
  static const char *const names[] = {"malloc",
                                      "free",
                                      "calloc",
                                      "realloc",
                                      "reallocarray",
                                      "memalign",
                                      "aligned_alloc",
                                      "posix_memalign",
                                      "valloc",
                                      "pvalloc",
                                      "malloc_usable_size",
                                      "malloc_trim",
                                      "malloc_stats",
                                      "malloc_info",
                                      "mallopt",
                                      "mallinfo",
                                      "mallinfo2",
                                      "free_sized",
                                      "free_aligned_sized"};
  Dl_info library, info;
  void *anchor = dlsym(RTLD_DEFAULT, "mesh_uffd_version");
  CHECK(dladdr(anchor, &library));
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    void *symbol = dlsym(RTLD_DEFAULT, names[i]);
    if (!symbol) {
      printf("  %s: nowhere\n", names[i]);
      continue;
    }
    CHECK(dladdr(symbol, &info));
    CHECKF(info.dli_fbase == library.dli_fbase, "%s is that of %s", names[i], info.dli_fname);
  }
}

/* tests/pages.sh asks for another than the kernel's. */
static size_t heap_page_size(void) {
  const char *asked = getenv("MESH_UFFD_TEST_PAGE_SIZE");
  return asked ? strtoull(asked, NULL, 10) : page_size;
}

static void test_public_functions(void) {
  if (!api.present) {
    printf("tier: absent\n  skipped part: public functions, not running on mesh-uffd\n");
    return;
  }
  test_one_allocator();
  const char *version = api.version();
  unsigned major, minor, patch;
  int length = 0;
  CHECK(version && sscanf(version, "%u.%u.%u%n", &major, &minor, &patch, &length) == 3 && version[length] == 0);
  CHECK(api.version() == version);
  CHECK(major == MESH_UFFD_VERSION_MAJOR && minor == MESH_UFFD_VERSION_MINOR && patch == MESH_UFFD_VERSION_PATCH);

  CHECK(api.get_stats(NULL) == EINVAL);
  struct mesh_uffd_stats stats;
  size_t least = offsetof(struct mesh_uffd_stats, meshes);
  for (size_t size = 0; size < least; size++) {
    memset(&stats, 0xab, sizeof stats);
    stats.size = size;
    CHECK(api.get_stats(&stats) == EINVAL);
  }
  for (size_t size = least; size <= sizeof stats; size += 8) {
    memset(&stats, 0xab, sizeof stats);
    stats.size = size;
    CHECK(api.get_stats(&stats) == 0);
    CHECK(stats.size == size);
    CHECK(stats.page_size == heap_page_size() && stats.tier <= MESH_UFFD_TIER_NONE);
    const unsigned char *bytes = (const unsigned char *)&stats;
    for (size_t i = size; i < sizeof stats; i++) CHECKF(bytes[i] == 0xab, "wrote beyond %zu bytes", size);
  }
  struct {
    struct mesh_uffd_stats stats;
    unsigned char newer[64];
  } future;
  memset(&future, 0xab, sizeof future);
  future.stats.size = sizeof future;
  CHECK(api.get_stats(&future.stats) == 0);
  CHECK(future.stats.size >= sizeof stats && future.stats.size <= sizeof future);

  static const size_t sizes[] = {0, 1, 64, 1000, 5000, 50000, 400000, 8 * MiB};
  enum { SIZES = sizeof sizes / sizeof *sizes };
  for (size_t i = 0; i < SIZES; i++) {
    unsigned char *p = malloc(sizes[i]);
    CHECK(p);
    CHECK(api.is_ours(p));
    if (sizes[i]) CHECK(api.is_ours(p + sizes[i] - 1));
    CHECK(api.usable_size(p) >= sizes[i] && api.usable_size(p) == malloc_usable_size(p));
    int result = api.exempt(p);
    CHECK(result == 0 || result == EBUSY);
    free(p);
  }
  int local = 0;
  CHECK(!api.is_ours(&local) && !api.is_ours(&api) && !api.is_ours(NULL) && !api.is_ours(version));
  CHECK(!api.is_ours((void *)(uintptr_t)16) && !api.is_ours((void *)UINTPTR_MAX));
  CHECK(api.usable_size(NULL) == 0);
  CHECK(api.exempt(&local) == EINVAL && api.exempt(NULL) == EINVAL);

  /* Paused, nothing is done; pauses nest. An exempted object keeps what it holds. */
  enum { N = 40000 };
  static void *p[N];
  struct rng rng = rng_from(3, 3);
  for (size_t i = 0; i < N; i++) {
    p[i] = malloc(128);
    CHECK(p[i]);
    pattern_fill(p[i], 128, i);
  }
  for (size_t i = 0; i < N; i++) {
    if (rng_below(&rng, 10)) {
      free(p[i]);
      p[i] = NULL;
    } else if (rng_below(&rng, 10) == 0) {
      int result = api.exempt(p[i]);
      CHECK(result == 0 || result == EBUSY);
    }
  }
  api.pause();
  api.pause();
  CHECK(api.compact() == 0);
  api.resume();
  CHECK(api.compact() == 0);
  uint64_t passes = mesh_api_stats(&api).passes;
  CHECK(api.compact() == 0);
  CHECK(mesh_api_stats(&api).passes == passes);
  api.resume();
  size_t freed = api.compact();
  struct mesh_uffd_stats after = mesh_api_stats(&api);
  printf("tier: %s\n  compact gave back %zu bytes\n", tier_name(after.tier), freed);
  print_stats(&after);
  for (size_t i = 0; i < N; i++) {
    if (!p[i]) continue;
    CHECK_PATTERN(p[i], 128, i);
    free(p[i]);
  }
  api.compact();
}

/* Blocks of all sizes live at once, each with its own pattern, freed in random order. */
static void test_many_sizes(struct rng *rng) {
  enum { MOST = 100000 };
  static void *p[MOST];
  size_t step = test_is_long() ? 13 : 37;
  size_t rounds = test_is_long() ? 13 : 1;
  for (size_t round = 0; round < rounds; round++) {
    size_t n = 0;
    for (size_t size = 1 + (rounds > 1 ? round : rng_below(rng, step)); size <= 100000;
         size += size < 4096 ? 1 : step) {
      unsigned char *b = malloc(size);
      CHECK(b);
      pattern_fill(b, size, size);
      if (size >= sizeof size) memcpy(b, &size, sizeof size);
      p[n++] = b;
      if (size < sizeof size) {
        free(b);
        n--;
      }
    }
    shuffle_pointers(rng, p, n);
    for (size_t i = 0; i < n; i++) {
      size_t size;
      memcpy(&size, p[i], sizeof size);
      CHECKF(size >= sizeof size && size <= 100000 && malloc_usable_size(p[i]) >= size, "stamp is %zu", size);
      uint64_t first = pattern_word(size, 0);
      memcpy(p[i], &first, sizeof first);
      CHECK_PATTERN(p[i], size, size);
      free(p[i]);
    }
  }
}

/* A random sequence of everything, against a table of what should be there. */
static void test_model(struct rng *rng, uint64_t ns) {
  enum { BLOCKS = 4000 };
  struct block {
    unsigned char *p;
    size_t size;
    uint64_t seed;
  };
  static struct block blocks[BLOCKS];
  uint64_t end = now_ns() + ns;
  size_t operations = 0;
  size_t live_target = BLOCKS / 2;
  for (; now_ns() < end; operations++) {
    if (operations % 20000 == 0) live_target = rng_below(rng, BLOCKS);
    struct block *b = &blocks[rng_below(rng, BLOCKS)];
    unsigned bits = rng_below(rng, 2000) == 0 ? 23 : rng_below(rng, 50) == 0 ? 17 : 11;
    size_t size = rng_size(rng, bits) - (rng_below(rng, 50) == 0);
    if (!b->p) {
      if (rng_below(rng, BLOCKS) > live_target) continue;
      size_t how = rng_below(rng, 8);
      if (how == 0) {
        size_t alignment = (size_t)1 << (3 + rng_below(rng, rng_below(rng, 20) ? 6 : 14));
        b->p = aligned_by((int)rng_below(rng, 3), alignment, size);
        CHECK(b->p);
        CHECK_EXACT(aligned(b->p, alignment));
      } else if (how < 3) {
        b->p = calloc(1, size);
        CHECK(b->p && all_zero(b->p, size));
      } else if (how < 4) {
        b->p = realloc(NULL, size);
      } else {
        b->p = malloc(size);
      }
      CHECK(b->p && malloc_usable_size(b->p) >= size);
    } else {
      CHECK_PATTERN(b->p, b->size, b->seed);
      if (rng_below(rng, 3) == 0) {
        if (!size) size = 1;
        b->p = realloc(b->p, size);
        CHECK(b->p && malloc_usable_size(b->p) >= size);
        size_t kept = size < b->size ? size : b->size;
        CHECK_PATTERN(b->p, kept, b->seed);
      } else {
        if (rng_below(rng, 2)) memset(b->p, 0xdd, b->size);
        free(b->p);
        b->p = NULL;
        continue;
      }
    }
    b->size = size;
    b->seed = rng_next(rng);
    pattern_fill(b->p, size, b->seed);
    if (api.present && rng_below(rng, 20000) == 0) api.compact();
  }
  for (size_t i = 0; i < BLOCKS; i++) {
    if (!blocks[i].p) continue;
    CHECK_PATTERN(blocks[i].p, blocks[i].size, blocks[i].seed);
    free(blocks[i].p);
    blocks[i].p = NULL;
  }
  printf("  model: %zu operations\n", operations);
}

#define RUN(call)                                                                                                      \
  do {                                                                                                                 \
    uint64_t start_ = now_ns();                                                                                        \
    call;                                                                                                              \
    printf("ok %-40s %6.1f ms\n", #call, (double)(now_ns() - start_) / 1e6);                                           \
  } while (0)

int main(void) {
  uint64_t seed = test_begin();
  test_watchdog(test_is_long() ? 900 : 120);
  struct rng rng = rng_from(seed, 0);
  api = mesh_api_find();
  exact = dlsym(RTLD_DEFAULT, "mi_version") == NULL;
  page_size = (size_t)sysconf(_SC_PAGESIZE);
  make_boundary_sizes();
  RUN(test_malloc());
  RUN(test_usable_size());
  RUN(test_calloc());
  RUN(test_realloc());
  RUN(test_alignment());
  RUN(test_errno());
  RUN(test_huge());
  RUN(test_sized_frees());
  RUN(test_many_sizes(&rng));
  RUN(test_model(&rng, UINT64_C(1000000000) * (test_is_long() ? 90 : 2)));
  RUN(test_public_functions());
  RUN(test_introspection());
  printf("passed\n");
  return 0;
}
