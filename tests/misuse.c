/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One misuse of the heap, named by the argument; misuse.sh says what must come of it. Writes `pointer: <%p>` to
 * standard output before it misuses that pointer. Exits 3 when nothing has stopped it, 2 for an unknown name.
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
  static void *objects[SMALLS];
  for (size_t i = 0; i < SMALLS; i++) CHECK((objects[i] = malloc(SMALL)));
  char *p = opaque((char *)objects[0] + 8);
  announce(p);
  free(p);
  for (size_t i = 1; i <= 256; i++) free(objects[i]);
  for (size_t i = 257; i < SMALLS && env_flag("MESH_UFFD_TEST_LONG"); i++) free(objects[i]);
}

/* Behind the last whole object of a span, where the next would begin. */
static void misuse_tail(void) {
  enum { SIZE = 48, PAGE = 4096 };
  static void *objects[SMALLS];
  for (size_t i = 0; i < SMALLS; i++) CHECK((objects[i] = malloc(SIZE)));
  uintptr_t span = (uintptr_t)objects[0] & ~(uintptr_t)(PAGE - 1);
  char *p = opaque((char *)objects[0] + (span + PAGE / SIZE * SIZE - (uintptr_t)objects[0]));
  announce(p);
  free(p);
  for (size_t i = 0; i < SMALLS; i++) free(objects[i]);
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
  void (*run)(void);
} cases[] = {
    {"none", misuse_none},
    {"free-stack", misuse_stack},
    {"free-mmap", misuse_mmap},
    {"realloc-mmap", misuse_realloc_mmap},
    {"free-interior-page", misuse_interior_page},
    {"free-interior-byte", misuse_interior_byte},
    {"double-free-large", misuse_double},
    {"realloc-freed-large", misuse_realloc_freed},
    {"free-unaligned-small", misuse_unaligned},
    {"free-tail-of-span", misuse_tail},
};

int main(int argc, char **argv) {
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    if (argc < 2) {
      printf("%s\n", cases[i].name);
    } else if (strcmp(argv[1], cases[i].name) == 0) {
      cases[i].run();
      return 3;
    }
  }
  return argc < 2 ? 0 : 2;
}
