/* SPDX-License-Identifier: Apache-2.0 */
#include "src/arena.h"
#include "src/mesh_files.h"
#include "src/mesher.h"
#include "src/options.h"
#include "src/pack.h"
#include "src/rng.h"
#include "src/sys.h"
#include "tests/unit/pages.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_PAGES = 256 };

static void make_arena(void) {
  cr_assert(mu_arena_init()); /* packs ask it for the page size alone */
}

TestSuite(pack, .init = make_arena, .timeout = 30);

static unsigned packs(void) {
  unsigned n = 0;
  for (const struct mu_pack *p = mu_packs; p; p = p->next) n++;
  return n;
}

static struct mu_pack *create(void) {
  struct mu_pack *pack = mu_pack_create(5, 4, 3, FILE_PAGES / 4);
  cr_assert_not_null(pack);
  mu_packs_end_plan();
  return pack;
}

/* Pages of the file that have memory, by seeking for it. */
static bool has_memory(const struct mu_pack *pack, size_t page) {
  off_t at = (off_t)(page << mu_arena.page_shift);
  return lseek(pack->file.fd, at, SEEK_DATA) == at;
}

static size_t blocks(const struct mu_pack *pack) {
  struct stat s;
  cr_assert_eq(fstat(pack->file.fd, &s), 0);
  return (size_t)s.st_blocks * 512 >> mu_arena.page_shift;
}

Test(pack, a_new_pack_is_empty_and_first) {
  struct mu_pack *first = create(), *second = mu_pack_create(7, 1, 1, 3);
  cr_assert_eq(mu_packs, second);
  cr_assert_eq(second->next, first);
  cr_assert_null(first->next);
  cr_assert_eq(first->size_class, 5);
  cr_assert_eq(first->unit_pages, 4);
  cr_assert_eq(first->words, 3);
  cr_assert_eq(first->units, FILE_PAGES / 4);
  cr_assert_eq(first->founded, 0);
  cr_assert_eq(first->file.bytes, (size_t)FILE_PAGES << mu_arena.page_shift);
  for (size_t i = 0; i < FILE_PAGES / 4 * 3; i++) cr_assert_eq(first->bits[i], 0);
  for (size_t i = 0; i < FILE_PAGES / 4; i++) cr_assert_eq(first->live[i], 0);
  for (size_t i = 0; i < FILE_PAGES / 64; i++) cr_assert_eq(first->made[i], 0);
  cr_assert_eq(blocks(first), 0);
}

/* The three arrays lie apart from one another and within their allocation. */
Test(pack, its_tables_do_not_overlap) {
  struct mu_pack *pack = mu_pack_create(1, 1, 4, 101);
  memset(pack->bits, 0x11, 101 * 4 * sizeof *pack->bits);
  memset(pack->made, 0x22, 2 * sizeof *pack->made);
  memset(pack->used, 0x44, 2 * sizeof *pack->used);
  memset(pack->live, 0x33, 101 * sizeof *pack->live);
  for (size_t i = 0; i < 101 * 4; i++) cr_assert_eq(pack->bits[i], UINT64_C(0x1111111111111111));
  for (size_t i = 0; i < 2; i++) cr_assert_eq(pack->made[i], UINT64_C(0x2222222222222222));
  for (size_t i = 0; i < 2; i++) cr_assert_eq(pack->used[i], UINT64_C(0x4444444444444444));
  cr_assert_eq(pack->units, 101);
  cr_assert_leq((char *)(pack->live + 101), (char *)pack + pack->map_bytes);
  memset(pack->made, 0, 2 * sizeof *pack->made);
}

/* Exactly the pages asked for are made, whatever was there; what was stored stays. */
static void prepare_at_random(void) {
  struct mu_pack *pack = create();
  bool made[FILE_PAGES] = {false};
  uint64_t rng = 3;
  size_t count = 0;
  for (int step = 0; step < 60; step++) {
    unsigned room = 1 + mu_rng_below(&rng, 64);
    size_t first = mu_rng_below(&rng, FILE_PAGES - room + 1);
    uint64_t mask = mu_rng_next(&rng) & mu_rng_next(&rng) & (room == 64 ? ~(uint64_t)0 : ((uint64_t)1 << room) - 1);
    if (step % 8 == 0) mask |= mu_rng_next(&rng) >> (64 - room);
    cr_assert(mu_pack_prepare(pack, first, mask));
    for (unsigned i = 0; i < room; i++) {
      if (!(mask >> i & 1)) continue;
      char *at = pack->file.window + ((first + i) << mu_arena.page_shift);
      cr_assert_eq(*at, made[first + i] ? (char)(first + i + 1) : 0, "step %d, page %zu", step, first + i);
      *at = (char)(first + i + 1);
      count += !made[first + i];
      made[first + i] = true;
    }
    cr_assert_eq(blocks(pack), count, "step %d", step);
    for (size_t i = 0; i < FILE_PAGES; i++)
      if (made[i] != has_memory(pack, i) || made[i] != mu_bit(pack->made, (uint32_t)i))
        cr_assert_fail("step %d, page %zu: made %d", step, i, made[i]);
  }
  cr_assert_eq(mu_file_bytes(), count << mu_arena.page_shift);
}

/* Made, ahead of time or not, and written to by nobody: they go back. What was written to stays. */
Test(pack, pages_that_nothing_was_written_to_go_back) {
  struct mu_pack *pack = create(), *other = create();
  cr_assert(mu_pack_prepare(pack, 60, 0xffff));
  mu_pack_note_used(pack, 60, 0x10f0);
  for (unsigned i = 60; i < 76; i++)
    if (0x10f0 >> (i - 60) & 1) memset(pack->file.window + ((size_t)i << mu_arena.page_shift), 7, mu_arena.page_size);
  mu_pack_prepare_ahead(pack, 128, ~(uint64_t)0);
  mu_pack_prepare_ahead(other, 0, 3);
  mu_packs_unmake_unused();
  for (size_t i = 0; i < FILE_PAGES; i++) {
    bool stays = i >= 60 && i < 76 && (0x10f0 >> (i - 60) & 1);
    cr_assert(has_memory(pack, i) == stays && mu_bit(pack->made, (uint32_t)i) == stays, "page %zu", i);
  }
  cr_assert_eq(pack->file.window[64 << mu_arena.page_shift], 7);
  cr_assert_eq(blocks(other), 0);
  cr_assert_eq(mu_file_bytes(), 5UL << mu_arena.page_shift);
  cr_assert(mu_pack_prepare(pack, 60, 0xffff), "and are made again");
  cr_assert_eq(blocks(pack), 16);
  mu_reclaim_idle();
}

Test(pack, the_pages_asked_for_are_made) {
  mu_options.ring = 0;
  prepare_at_random();
  cr_assert_eq(mu_engine_counters.ops_ring, 0);
  cr_assert_gt(mu_engine_counters.ops_plain, 0);
}

Test(pack, the_pages_asked_for_are_made_with_a_ring) {
  prepare_at_random();
  cr_assert_gt(mu_engine_counters.ops_ring + mu_engine_counters.ops_plain, 0);
  mu_reclaim_idle();
}

static int no_ring_enter(enum mu_sys call, uint64_t index) {
  return call == MU_SYS_io_uring_enter && index >= 3 ? EIO : 0;
}

Test(pack, a_ring_that_breaks_is_done_without) {
  mu_sys_hook = no_ring_enter;
  prepare_at_random();
  cr_assert_gt(mu_engine_counters.ops_plain, 0);
}

Test(pack, neighbouring_pages_are_made_in_one_call) {
  mu_options.ring = 0;
  struct mu_pack *pack = create();
  cr_assert(mu_pack_prepare(pack, 10, 0xff0f));
  cr_assert_eq(mu_engine_counters.ops_plain, 2);
  cr_assert(mu_pack_prepare(pack, 10, 0xff0f));
  cr_assert_eq(mu_engine_counters.ops_plain, 2, "what is there is not made again");
  cr_assert(mu_pack_prepare(pack, 10, 0xffff));
  cr_assert_eq(mu_engine_counters.ops_plain, 3);
  cr_assert(mu_pack_prepare(pack, 64, ~(uint64_t)0));
  cr_assert_eq(mu_engine_counters.ops_plain, 4);
  cr_assert(mu_pack_prepare(pack, 0, 0));
  cr_assert_eq(mu_engine_counters.ops_plain, 4);
}

/* Some of it is begun ahead, as a pass does for the next run. */
Test(pack, pages_made_ahead_are_made_once) {
  struct mu_pack *pack = create(), *other = create();
  mu_pack_prepare_ahead(pack, 3, 0x8000000000000f0f);
  cr_assert(mu_pack_prepare(other, 0, 1));
  cr_assert(mu_pack_prepare(pack, 3, 0x8000000000000fff));
  cr_assert_eq(blocks(pack), 13);
  cr_assert_eq(blocks(other), 1);
  cr_assert_eq(pack->made[0], 0x7ff8);
  cr_assert_eq(pack->made[1], 4);
  cr_assert_eq(mu_file_bytes(), (size_t)14 << mu_arena.page_shift);
  mu_pack_prepare_ahead(pack, 100, ~(uint64_t)0);
  mu_packs_seal_all();
  mu_reclaim_idle();
}

static int no_fallocate(enum mu_sys call, uint64_t index) {
  return call == MU_SYS_fallocate && index == 1 ? ENOSPC : 0;
}

Test(pack, pages_that_cannot_be_made_are_not_said_to_be) {
  mu_options.ring = 0;
  struct mu_pack *pack = create();
  mu_sys_hook = no_fallocate;
  cr_assert_not(mu_pack_prepare(pack, 0, 0x55));
  cr_assert_eq(pack->made[0], 1);
  cr_assert(mu_pack_prepare(pack, 0, 0x55));
  cr_assert_eq(pack->made[0], 0x55);
}

/* Of mesh files alone: Criterion's own connection opens descriptors in the background. */
static unsigned descriptors(void) {
  unsigned n = 0;
  for (int fd = 0; fd < 1024; fd++) {
    char name[32], target[64] = "";
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    n += readlink(name, target, sizeof target - 1) > 0 && strstr(target, "memfd:mesh-uffd");
  }
  return n;
}

static enum mu_sys refused_call;

static int refuse_one(enum mu_sys call, uint64_t index) {
  (void)index;
  return call == refused_call ? ENOMEM : 0;
}

Test(pack, a_pack_that_cannot_be_made_leaves_nothing_behind) {
  static const enum mu_sys calls[] = {MU_SYS_mmap, MU_SYS_memfd_create, MU_SYS_ftruncate, MU_SYS_prlimit64};
  create();
  unsigned before = descriptors();
  cr_assert_eq(before, 1);
  mu_sys_hook = refuse_one;
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    refused_call = calls[i];
    cr_assert_null(mu_pack_create(1, 1, 1, 64));
    cr_assert_eq(packs(), 1);
  }
  mu_sys_hook = NULL;
  cr_assert_eq(descriptors(), before, "a descriptor is left");
}

/* The one that has the least room makes room for others. */
Test(pack, the_fullest_is_sealed_when_there_are_too_many) {
  enum { FULLEST = 7, MARK = 99 }; /* its address may be used again */
  for (unsigned i = 0; packs() == i; i++) {
    struct mu_pack *pack = create();
    pack->founded = 1;
    pack->live[0] = i == FULLEST ? 3 : 2;
    if (i == FULLEST) pack->words = MARK;
  }
  for (const struct mu_pack *p = mu_packs; p; p = p->next) cr_assert_neq(p->words, MARK);
}

/* As many as there may be: the oldest makes room. Its descriptor goes, what is mapped of it stays. */
Test(pack, the_oldest_is_sealed_when_there_are_too_many) {
  struct mu_pack *oldest = create();
  int fd = oldest->file.fd, err;
  oldest->size_class = 9; /* of no other; its address may be used again */
  unsigned most = 1;
  cr_assert(mu_pack_prepare(oldest, 0, 3));
  strcpy(oldest->file.window + mu_arena.page_size, "still here");
  char *mapped =
      mu_mmap(NULL, mu_arena.page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, (off_t)mu_arena.page_size, &err);
  cr_assert_not_null(mapped);
  for (int i = 0; i < 100 && packs() == most; i++) {
    create();
    if (packs() > most) most++;
  }
  cr_assert(most > 8 && most < 100, "%u", most);
  for (const struct mu_pack *p = mu_packs; p; p = p->next) cr_assert_neq(p->size_class, 9);
  cr_assert_str_eq(mapped, "still here");
  mapped[0] = 'S';
  create();
  cr_assert_eq(packs(), most);
}

Test(pack, sealing_closes_every_file) {
  unsigned before = descriptors();
  int fds[5];
  for (int i = 0; i < 5; i++) fds[i] = create()->file.fd;
  mu_packs_seal_all();
  cr_assert_null(mu_packs);
  for (int i = 0; i < 5; i++) cr_assert_eq(fcntl(fds[i], F_GETFD), -1);
  cr_assert_eq(descriptors(), before);
}

/* A file that is sealed cannot be written even by who still has a descriptor. */
Test(pack, a_sealed_file_is_never_written_again) {
  struct mu_pack *pack = create();
  int other = dup(pack->file.fd);
  cr_assert_eq(pwrite(other, "x", 1, 0), 1);
  mu_packs_seal_all();
  cr_assert_eq(pwrite(other, "y", 1, 0), -1);
  cr_assert_eq(errno, EPERM);
  cr_assert_eq(ftruncate(other, 0), -1);
}

Test(pack, forgetting_touches_nothing) {
  struct mu_pack *pack = create();
  mu_packs_forget();
  cr_assert_null(mu_packs);
  cr_assert_neq(fcntl(pack->file.fd, F_GETFD), -1);
}

Test(pack, scratch_memory_is_zeroed) {
  for (size_t bytes = 0; bytes < 300000; bytes = bytes * 3 + 1) {
    char *p = mu_scratch_alloc(bytes);
    cr_assert_not_null(p);
    for (size_t i = 0; i < bytes; i++)
      if (p[i]) cr_assert_fail("byte %zu of %zu", i, bytes);
    memset(p, 1, bytes);
    mu_scratch_free(p, bytes);
  }
  mu_scratch_free(NULL, 100);
}
