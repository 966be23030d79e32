/* SPDX-License-Identifier: Apache-2.0 */
/* What every file needs: types, hints, assertions. */
#ifndef MU_COMMON_H
#define MU_COMMON_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MU_LIKELY(x)   __builtin_expect(!!(x), 1)
#define MU_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define MU_NOINLINE    __attribute__((noinline))
#define MU_COLD        __attribute__((noinline, cold)) /* and optimized for size */
#define MU_EXPORT      __attribute__((visibility("default")))
/* What every process touches at its start and at its first allocations lies side by side, on few pages: functions where
 * constructors are, constants where those are that the dynamic linker has to write. */
#define MU_AT_START     __attribute__((section(".text.startup")))
#define MU_EARLY_CONST  __attribute__((section(".data.rel.ro.early")))
#define MU_EARLY        __attribute__((section(".data.early")))
#define MU_INITIAL_EXEC __attribute__((tls_model("initial-exec")))

/* A function that reads without a lock what others write, and does with a figure that is old or half of another time:
 * where the answer matters, it is asked again under the lock. ThreadSanitizer shall not report it. */
#if defined __has_feature
#if __has_feature(thread_sanitizer)
#define MU_RACY __attribute__((no_sanitize("thread"), noinline))
#endif
#endif
#ifndef MU_RACY
#define MU_RACY
#endif

/* Between two stores of constants: compilers make one of them, of a constant that is on a page which small processes
 * would have for that alone. */
#define MU_NOT_ONE_CONSTANT() __asm__ volatile("")

/* Always checked: what must never be false, at the price of the program. Does not allocate. */
_Noreturn void mu_assert_failed(const char *what, const char *file, int line);
#define MU_CHECK(x) (MU_LIKELY(x) ? (void)0 : mu_assert_failed(#x, __FILE__, __LINE__))

/* Checked in debug builds (./configure --enable-debug). */
#ifdef MU_DEBUG
#define MU_ASSERT(x) MU_CHECK(x)
#else
#define MU_ASSERT(x) ((void)sizeof(!(x)))
#endif

static inline size_t mu_round_up(size_t n, size_t to) {
  return (n + to - 1) & ~(to - 1);
}
static inline size_t mu_round_down(size_t n, size_t to) {
  return n & ~(to - 1);
}
static inline size_t mu_min(size_t a, size_t b) {
  return a < b ? a : b;
}
static inline size_t mu_max(size_t a, size_t b) {
  return a > b ? a : b;
}
static inline unsigned mu_log2(size_t n) {
  return 63U - (unsigned)__builtin_clzll((unsigned long long)n);
}

#endif
