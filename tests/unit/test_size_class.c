/* SPDX-License-Identifier: Apache-2.0 */
#include "src/mini_heap.h"
#include "src/size_class.h"

#include <criterion/criterion.h>

/* Every assertion that Criterion counts costs a message: loops use this one. */
#define CHECK(condition, format, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) cr_assert_fail("%s: " format, #condition, ##__VA_ARGS__);                                        \
  } while (0)

static const size_t page_sizes[] = {4096, 16384, 65536};

static void for_each_class(void (*check)(const struct mu_size_class *k, unsigned c, size_t page)) {
  for (size_t i = 0; i < sizeof page_sizes / sizeof *page_sizes; i++) {
    mu_size_class_init(page_sizes[i]);
    for (unsigned c = 1; c < MU_CLASSES; c++) check(&mu_classes[c], c, page_sizes[i]);
  }
}

Test(size_class, each_size_has_the_smallest_class_that_holds_it) {
  for (size_t i = 0; i < sizeof page_sizes / sizeof *page_sizes; i++) {
    mu_size_class_init(page_sizes[i]);
    for (size_t size = 1; size <= MU_MAX_SMALL; size++) {
      unsigned c = mu_class_of(size);
      CHECK(c >= 1 && c < MU_CLASSES, "class %u for %zu bytes", c, size);
      CHECK(mu_classes[c].size >= size, "class %u of %u bytes for %zu", c, mu_classes[c].size, size);
      CHECK(c == 1 || mu_classes[c - 1].size < size, "class %u for %zu bytes: a smaller one does", c, size);
    }
  }
}

Test(size_class, both_ways_to_a_class_agree_where_they_meet) {
  mu_size_class_init(4096);
  for (size_t size = 129; size <= MU_TABLE_MAX; size++)
    CHECK(mu_class_of_medium(size) == mu_class_table[(size + 15) / 16], "%zu bytes", size);
  cr_assert_eq(mu_class_table[0], 1, "no bytes at all have a class too");
}

Test(size_class, a_slot_wastes_less_than_a_fifth_or_sixteen_bytes) {
  mu_size_class_init(4096);
  for (size_t size = 1; size <= MU_MAX_SMALL; size++) {
    size_t slot = mu_classes[mu_class_of(size)].size;
    CHECK(slot - size < 16 || (slot - size) * 5 < slot, "%zu bytes in a slot of %zu", size, slot);
  }
}

static void check_order(const struct mu_size_class *k, unsigned c, size_t page) {
  CHECK(k->size % 16 == 0, "class %u has %u bytes", c, k->size);
  CHECK(c == 1 ? k->size == 16 : k->size > k[-1].size, "class %u, pages of %zu", c, page);
  CHECK(c + 1 < MU_CLASSES || k->size == MU_MAX_SMALL, "class %u has %u bytes", c, k->size);
  /* A power of two has a class of its own: an aligned slot costs nothing there. */
  CHECK(c <= 8 || (c - 8) % 4 || !(k->size & (k->size - 1)), "class %u has %u bytes", c, k->size);
}

Test(size_class, classes_ascend_in_steps_of_sixteen_bytes) {
  for_each_class(check_order);
}

static void check_span(const struct mu_size_class *k, unsigned c, size_t page) {
  size_t bytes = k->span_pages * page;
  CHECK(k->span_pages && !(k->span_pages & (k->span_pages - 1)), "class %u: %u pages", c, k->span_pages);
  CHECK(k->span_pages * k->spans_per_run == MU_RUN_PAGES, "class %u", c);
  CHECK(k->span_pages == MU_RUN_PAGES || k->span_pages <= MU_MAX_SPAN_PAGES, "class %u: %u pages", c, k->span_pages);
  CHECK(k->slots && (size_t)k->slots * k->size <= bytes, "class %u: %u slots do not fit", c, k->slots);
  CHECK(((size_t)k->slots + 1) * k->size > bytes, "class %u: more than %u slots fit", c, k->slots);
  CHECK(k->words == (k->slots + 63) / 64, "class %u: %u words for %u slots", c, k->words, k->slots);
}

Test(size_class, spans_divide_runs_and_slots_fit_into_spans) {
  for_each_class(check_span);
}

static void check_bitmap_room(const struct mu_size_class *k, unsigned c, size_t page) {
  size_t needed = offsetof(struct mu_mini_heap, bitmap) + k->words * sizeof(uint64_t);
  CHECK(k->meta >= needed && k->meta % 8 == 0, "class %u, pages of %zu: %u bytes", c, page, k->meta);
  CHECK(page > 4096 || k->span_pages > 1 || k->meta <= 64, "class %u: %u bytes", c, k->meta);
  CHECK(k->span_pages == 1 << k->span_shift, "class %u: %u pages", c, k->span_pages);
}

Test(size_class, bitmaps_fit_into_a_mini_heap) {
  for_each_class(check_bitmap_room);
}

static void check_meshable(const struct mu_size_class *k, unsigned c, size_t page) {
  CHECK(k->meshable == (k->size < page), "class %u", c);
  CHECK(k->meshable == (k->span_pages != MU_RUN_PAGES), "class %u: %u pages", c, k->span_pages);
}

Test(size_class, exactly_slots_smaller_than_a_page_are_meshable) {
  for_each_class(check_meshable);
}

/* What spans of so many pages would leave unused; everything when they cannot be. */
static double tail(const struct mu_size_class *k, size_t page, unsigned pages) {
  size_t bytes = page * pages;
  return bytes / k->size > page / 16 ? 1 : (double)(bytes % k->size) / (double)bytes;
}

static void check_tail(const struct mu_size_class *k, unsigned c, size_t page) {
  if (!k->meshable) return;
  double ours = tail(k, page, k->span_pages);
  for (unsigned pages = 1; pages <= MU_MAX_SPAN_PAGES; pages *= 2) {
    double other = tail(k, page, pages);
    bool good = other <= 1.0 / 32;
    CHECK(ours <= 1.0 / 32 || ours <= other, "class %u, pages of %zu: %u waste less", c, page, pages);
    CHECK(!good || pages >= k->span_pages, "class %u, pages of %zu: %u waste little enough", c, page, pages);
  }
}

Test(size_class, spans_are_the_smallest_that_leave_a_small_tail) {
  for_each_class(check_tail);
}

static void check_vector(const struct mu_size_class *k, unsigned c, size_t page) {
  CHECK(k->batch >= 1 && k->batch <= k->cap, "class %u, pages of %zu: %u of %u", c, page, k->batch, k->cap);
  CHECK(k->cap >= 4 && k->cap <= MU_MAX_CAP, "class %u: %u", c, k->cap);
  CHECK(k->batch == 1 || (size_t)k->batch * k->size <= 12288, "class %u: %u at once", c, k->batch);
}

Test(size_class, a_batch_fits_into_a_vector) {
  for_each_class(check_vector);
}

/* The quotient counted up instead of divided. */
static void check_division(const struct mu_size_class *k, size_t end) {
  uint32_t bad = 0;
  for (size_t start = 0, slot = 0; start < end; start += k->size, slot++) {
    size_t stop = mu_min(start + k->size, end);
    for (size_t offset = start; offset < stop; offset++) bad += mu_slot_of(k, offset) != slot;
    CHECK(!bad, "%u bytes a slot: wrong near offset %zu", k->size, start);
  }
}

Test(size_class, division_by_multiplication_is_exact_in_any_run) {
  const size_t largest_run = MU_RUN_PAGES * (size_t)65536;
  mu_size_class_init(65536);
  for (unsigned c = 1; c < MU_CLASSES; c++) check_division(&mu_classes[c], largest_run);
}

static void check_magic(const struct mu_size_class *k, unsigned c, size_t page) {
  /* That its error stays below one slot for offsets below 2^22: magic * size is 2^40 and less than 2^18 more. */
  uint64_t over = k->magic * k->size - (UINT64_C(1) << 40);
  CHECK(over < UINT64_C(1) << 18 && over < k->size, "class %u, pages of %zu", c, page);
}

Test(size_class, the_divisor_does_not_depend_on_the_page) {
  for_each_class(check_magic);
}
