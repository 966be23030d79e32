/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One misuse of the heap, named by the argument; misuse.sh says what must come of it. Without argument: the list of
 * them, each with the least MESH_UFFD_CHECK that finds it at once. Writes `pointer: <%p>` to standard output before it
 * misuses that pointer. Exits 3 when nothing has stopped it, 2 for an unknown name.
 */
#include "test.h"

#include <sys/mman.h>

enum { SMALL = 64, SMALLS = 600, LARGE = 8 << 20 };

static void announce(const void *p) {
  printf("pointer: %p\n", p);
  fflush(stdout);
}

static void misuse_stack(void) {
  _Alignas(64) char local[256] = "";
  char *p = opaque(local + 64);
  announce(p);
  free(p);
}

static void misuse_mmap(void) {
  char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  p = opaque(p + 4096 + 64);
  announce(p);
  free(p);
}

static void misuse_realloc_mmap(void) {
  char *p = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  p = opaque(p + 4096 + 64);
  announce(p);
  p = opaque(realloc(p, 100));
}

static void misuse_interior(size_t offset) {
  char *p = malloc(LARGE);
  CHECK(p);
  p = opaque(p + offset);
  announce(p);
  free(p);
}

static void misuse_interior_page(void) {
  misuse_interior(8 * 4096);
}
static void misuse_interior_byte(void) {
  misuse_interior(64);
}

static void misuse_double(void) {
  void *p = malloc(LARGE);
  CHECK(p);
  uintptr_t address = (uintptr_t)p;
  announce(p);
  free(p);
  free(opaque((void *)address));
}

static void misuse_realloc_freed(void) {
  void *p = malloc(LARGE);
  CHECK(p);
  uintptr_t address = (uintptr_t)p;
  announce(p);
  free(p);
  p = opaque(realloc(opaque((void *)address), LARGE / 2));
}

/* Small objects are looked at when a thread gives them back, in batches: enough more of the same class have to follow.
 */
static void misuse_unaligned(void) {
  enum { MANY = 20000 }; /* more than a thread keeps */
  static void *objects[MANY];
  for (size_t i = 0; i < MANY; i++) CHECK((objects[i] = malloc(SMALL)));
  char *p = opaque((char *)objects[0] + 8);
  announce(p);
  free(p);
  for (size_t i = 1; i < MANY; i++) free(objects[i]);
}

/* Behind the last whole object of a span, where the next would begin. */
static void misuse_tail(void) {
  enum { SIZE = 48, PAGE = 4096, MANY = 20000 };
  static void *objects[MANY];
  for (size_t i = 0; i < MANY; i++) CHECK((objects[i] = malloc(SIZE)));
  uintptr_t span = (uintptr_t)objects[0] & ~(uintptr_t)(PAGE - 1);
  char *p = opaque((char *)objects[0] + (span + PAGE / SIZE * SIZE - (uintptr_t)objects[0]));
  announce(p);
  free(p);
  for (size_t i = 0; i < MANY; i++) free(objects[i]);
}

/* ---- small objects, looked at at once with the checking option ----------------------------------------------------
 */

/* An object whose span holds others, so that it stays. */
static char *small_object(size_t size) {
  static void *keep[2];
  keep[0] = malloc(size);
  char *p = malloc(size);
  keep[1] = malloc(size);
  CHECK(p && keep[0] && keep[1]);
  memset(p, 1, size);
  return p;
}

/* Somebody else's object is freed in between. */
static void misuse_double_small(void) {
  char *p = small_object(SMALL), *q = small_object(SMALL);
  uintptr_t address = (uintptr_t)p;
  announce(p);
  free(p);
  free(q);
  free(opaque((void *)address));
}

static void misuse_double_at_once(void) {
  char *p = small_object(SMALL);
  uintptr_t address = (uintptr_t)p;
  announce(p);
  free(p);
  free(opaque((void *)address));
}

static void misuse_by(size_t offset) {
  char *p = opaque(small_object(SMALL) + offset);
  announce(p);
  free(p);
}

static void misuse_interior_small(void) {
  misuse_by(16);
}
static void misuse_unaligned_at_once(void) {
  misuse_by(1);
}

static void misuse_realloc_freed_small(void) {
  char *p = small_object(SMALL);
  uintptr_t address = (uintptr_t)p;
  announce(p);
  free(p);
  p = opaque(realloc(opaque((void *)address), SMALL * 4));
}

static void misuse_realloc_interior_small(void) {
  char *p = opaque(small_object(SMALL) + 32);
  announce(p);
  p = opaque(realloc(p, SMALL * 4));
}

/* Every object of the class goes, and then what held them. */
static void misuse_gone(void) {
  enum { MANY = 40000 };
  static char *objects[MANY];
  for (size_t i = 0; i < MANY; i++) CHECK((objects[i] = malloc(SMALL)));
  uintptr_t address = (uintptr_t)objects[MANY / 2];
  announce(objects[MANY / 2]);
  for (size_t i = 0; i < MANY; i++) free(objects[i]);
  free(opaque((void *)address));
}

/* ---- past the end, with guards ------------------------------------------------------------------------------------
 */

static char *overrun(size_t size, size_t at) {
  char *p = size > 100000 ? malloc(size) : small_object(size);
  CHECK(p);
  announce(p);
  p = opaque(p);
  *(volatile char *)(p + at) = 7;
  return p;
}

static void misuse_one_past(void) {
  free(overrun(40, 40));
}
static void misuse_one_past_full(void) {
  free(overrun(SMALL, SMALL));
}
static void misuse_one_past_large(void) {
  free(overrun(LARGE, LARGE));
}
static void misuse_realloc_past(void) {
  char *p = opaque(realloc(overrun(40, 45), 80));
  free(p);
}
static void misuse_past_aligned(void) {
  char *p = aligned_alloc(256, 300);
  CHECK(p);
  announce(p);
  memset(opaque(p), 7, 301);
  free(p);
}
/* As a string that is longer than the room for it. */
static void misuse_into_neighbour(void) {
  char *p = small_object(SMALL);
  announce(p);
  memset((char *)opaque(p), 'x', SMALL + 40);
  free(p);
}

/* The control: nothing is wrong. */
static void misuse_none(void) {
  static void *objects[SMALLS];
  for (size_t i = 0; i < SMALLS; i++) CHECK((objects[i] = malloc(i % 10 ? SMALL : LARGE)));
  announce(objects[0]);
  for (size_t i = 0; i < SMALLS; i++) free(objects[i]);
}

static const struct {
  const char *name;
  int check; /* the least MESH_UFFD_CHECK that finds it at once */
  void (*run)(void);
} cases[] = {
    {"none", 0, misuse_none},
    {"free-stack", 0, misuse_stack},
    {"free-mmap", 0, misuse_mmap},
    {"realloc-mmap", 0, misuse_realloc_mmap},
    {"free-interior-page", 0, misuse_interior_page},
    {"free-interior-byte", 0, misuse_interior_byte},
    {"double-free-large", 0, misuse_double},
    {"realloc-freed-large", 0, misuse_realloc_freed},
    {"free-unaligned-small", 0, misuse_unaligned},
    {"free-tail-of-span", 0, misuse_tail},
    {"double-free-small-at-once", 0, misuse_double_at_once},
    {"double-free-small", 1, misuse_double_small},
    {"free-interior-small", 1, misuse_interior_small},
    {"free-unaligned-small-at-once", 1, misuse_unaligned_at_once},
    {"realloc-freed-small", 1, misuse_realloc_freed_small},
    {"realloc-interior-small", 1, misuse_realloc_interior_small},
    {"double-free-of-gone-span", 1, misuse_gone},
    {"one-past-the-end", 2, misuse_one_past},
    {"one-past-a-full-slot", 2, misuse_one_past_full},
    {"one-past-a-large-block", 2, misuse_one_past_large},
    {"realloc-past-the-end", 2, misuse_realloc_past},
    {"past-an-aligned-one", 2, misuse_past_aligned},
    {"into-the-neighbour", 2, misuse_into_neighbour},
};

int main(int argc, char **argv) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    if (argc < 2) {
      printf("%s %d\n", cases[i].name, cases[i].check);
    } else if (strcmp(argv[1], cases[i].name) == 0) {
      cases[i].run();
      return 3;
    }
  }
  return argc < 2 ? 0 : 2;
}
