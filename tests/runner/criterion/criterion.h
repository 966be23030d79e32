/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the unit tests use of Criterion, for where Criterion is not to be had (./configure --without-criterion): other
 * C libraries, other machines. Each test runs in a process of its own, as there.
 */
#ifndef MU_RUNNER_CRITERION_H
#define MU_RUNNER_CRITERION_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct runner_options {
  int reserved; /* what follows it may be empty */
  void (*init)(void);
  void (*fini)(void);
  int signal;       /* that the test is to end by */
  unsigned timeout; /* seconds */
};

struct runner_test {
  const char *suite, *name; /* no name: the suite's own options */
  void (*run)(void);
  struct runner_options options;
  struct runner_test *next;
};

void runner_add(struct runner_test *test);
_Noreturn __attribute__((format(printf, 4, 5))) void runner_fail(const char *file, int line, const char *what,
                                                                 const char *format, ...);
_Noreturn __attribute__((format(printf, 1, 2))) void runner_skip(const char *format, ...);

#define RUNNER_ADD(id, suite_, name_, run_, ...)                                                                       \
  __attribute__((constructor)) static void runner_add_##id(void) {                                                     \
    static struct runner_test test = {                                                                                 \
        .suite = suite_, .name = name_, .run = run_, .options = {.reserved = 0, __VA_ARGS__}};                         \
    runner_add(&test);                                                                                                 \
  }

#define TestSuite(suite, ...) RUNNER_ADD(suite, #suite, NULL, NULL, __VA_ARGS__) struct runner_test
#define Test(suite, name, ...)                                                                                         \
  static void runner_##suite##_##name(void);                                                                           \
  RUNNER_ADD(suite##_##name, #suite, #name, runner_##suite##_##name, __VA_ARGS__)                                      \
  static void runner_##suite##_##name(void)

#define RUNNER_ASSERT(condition, ...)                                                                                  \
  ((condition) ? (void)0 : runner_fail(__FILE__, __LINE__, #condition, " " __VA_ARGS__))

#define cr_assert(x, ...)              RUNNER_ASSERT(x, __VA_ARGS__)
#define cr_assert_not(x, ...)          RUNNER_ASSERT(!(x), __VA_ARGS__)
#define cr_assert_eq(a, b, ...)        RUNNER_ASSERT((a) == (b), __VA_ARGS__)
#define cr_assert_neq(a, b, ...)       RUNNER_ASSERT((a) != (b), __VA_ARGS__)
#define cr_assert_lt(a, b, ...)        RUNNER_ASSERT((a) < (b), __VA_ARGS__)
#define cr_assert_leq(a, b, ...)       RUNNER_ASSERT((a) <= (b), __VA_ARGS__)
#define cr_assert_gt(a, b, ...)        RUNNER_ASSERT((a) > (b), __VA_ARGS__)
#define cr_assert_geq(a, b, ...)       RUNNER_ASSERT((a) >= (b), __VA_ARGS__)
#define cr_assert_null(p, ...)         RUNNER_ASSERT((p) == NULL, __VA_ARGS__)
#define cr_assert_not_null(p, ...)     RUNNER_ASSERT((p) != NULL, __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...)    RUNNER_ASSERT(strcmp(a, b) == 0, __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...) RUNNER_ASSERT(memcmp(a, b, n) == 0, __VA_ARGS__)
#define cr_assert_fail(...)            runner_fail(__FILE__, __LINE__, "failed", " " __VA_ARGS__)
#define cr_skip_test(...)              runner_skip(__VA_ARGS__)

#endif
