/* SPDX-License-Identifier: Apache-2.0 */
#include "src/log.h"
#include "src/rng.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Every assertion that Criterion counts costs a message: loops use this one. */
#define CHECK(condition, format, ...)                                                                                  \
  do {                                                                                                                 \
    if (!(condition)) cr_assert_fail("%s: " format, #condition, ##__VA_ARGS__);                                        \
  } while (0)

enum { SEEDS = 20000 };

static char ours[256], theirs[256];

#define SAME(seed, ...)                                                                                                \
  do {                                                                                                                 \
    size_t n_ = mu_format(ours, sizeof ours, __VA_ARGS__);                                                             \
    snprintf(theirs, sizeof theirs, __VA_ARGS__);                                                                      \
    CHECK(strcmp(ours, theirs) == 0 && n_ == strlen(theirs), "seed %d: \"%s\" instead of \"%s\"", (int)(seed), ours,   \
          theirs);                                                                                                     \
  } while (0)

/* Of any magnitude. */
static uint64_t number(uint64_t *rng) {
  return mu_rng_next(rng) >> mu_rng_below(rng, 64);
}

TestSuite(log, .timeout = 30);

static void check_integers(int seed, uint64_t n) {
  int i = (int)n;
  unsigned u = (unsigned)n;
  SAME(seed, "%d|%u|%x", i, u, u);
  SAME(seed, "%ld|%lu|%lx", (long)n, (unsigned long)n, (unsigned long)n);
  SAME(seed, "%zd|%zu|%zx", (ssize_t)n, (size_t)n, (size_t)n);
  SAME(seed, "%lld|%llu|%llx", (long long)n, (unsigned long long)n, (unsigned long long)n);
  SAME(seed, "%8d|%20ld|%3u|%12zu|%1x", i, (long)n, u, (size_t)n, u);
  SAME(seed, "%-8d|%-20ld|%-3u|%-12zu|%-1x", i, (long)n, u, (size_t)n, u);
  SAME(seed, "%08u|%020lu|%03x|%016zx", u, (unsigned long)n, u, (size_t)n);
}

Test(log, integers_as_snprintf_writes_them) {
  static const uint64_t edges[] = {0, 1, 9, 10, INT32_MAX, UINT64_C(1) << 31, UINT32_MAX, INT64_MAX, UINT64_C(1) << 63};
  uint64_t rng = 1;
  for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
    check_integers(0, edges[i]);
    check_integers(0, 0 - edges[i]);
  }
  for (int seed = 1; seed <= SEEDS; seed++) check_integers(seed, number(&rng));
}

Test(log, pointers_as_snprintf_writes_them) {
  uint64_t rng = 2;
  for (int seed = 1; seed <= SEEDS; seed++) {
    void *p = (void *)(uintptr_t)(number(&rng) | 1);
    SAME(seed, "%p|%20p|%-20p|", p, p, p);
  }
  mu_format(ours, sizeof ours, "%p", (void *)NULL);
  cr_assert_str_eq(ours, "0x0");
}

Test(log, strings_as_snprintf_writes_them) {
  uint64_t rng = 3;
  for (int seed = 1; seed <= SEEDS / 4; seed++) {
    char text[40];
    uint32_t len = mu_rng_below(&rng, sizeof text);
    for (uint32_t i = 0; i < len; i++) text[i] = (char)(1 + mu_rng_below(&rng, 255));
    text[len] = 0;
    SAME(seed, "%s", text);
    SAME(seed, "<%s>%%<%12s><%-12s>", text, text, text);
    SAME(seed, "%.5s|%.0s|%.64s|%8.3s|%-8.3s", text, text, text, text, text);
  }
  SAME(0, "%s", "");
  SAME(0, "%%%s%%%d%%", "%d", 1);
  SAME(0, "nothing");
}

/* Values that are exact with that precision. */
Test(log, exact_fractions_as_snprintf_writes_them) {
  uint64_t rng = 4;
  for (int seed = 1; seed <= SEEDS; seed++) {
    double v = (double)(int64_t)(number(&rng) >> 30) / 8 * (mu_rng_below(&rng, 2) ? 1 : -1);
    double whole = (double)(int64_t)v;
    v += 0.0; /* no negative zero */
    SAME(seed, "%.3f|%12.3f|%-12.3f|", v, v, v);
    SAME(seed, "%.0f|%.1f|%.6f", whole, whole / 2, v);
  }
}

/* Others to within half of the last digit, which is all that is promised. */
Test(log, fractions_are_rounded_to_the_nearest) {
  uint64_t rng = 5;
  double half[] = {0.5, 0.05, 0.005, 0.0005};
  for (int seed = 1; seed <= SEEDS; seed++) {
    double v = (double)(mu_rng_next(&rng) >> 11) / 16384 / (double)(UINT64_C(1) << mu_rng_below(&rng, 64));
    for (int precision = 0; precision < 4; precision++) {
      static const char *const formats[] = {"%.0f", "%.1f", "%.2f", "%.3f"};
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
      mu_format(ours, sizeof ours, formats[precision], v);
      snprintf(theirs, sizeof theirs, formats[precision], v);
#pragma GCC diagnostic pop
      double off = strtod(ours, NULL) - v;
      CHECK((off < 0 ? -off : off) <= half[precision] * 1.000001 + v * 1e-15, "seed %d: %s for %g", seed, ours, v);
      CHECK(strlen(ours) == strlen(theirs) || strtod(ours, NULL) > strtod(theirs, NULL), "seed %d: %s, not %s", seed,
            ours, theirs);
    }
  }
}

Test(log, the_default_precision_is_one_digit) {
  mu_format(ours, sizeof ours, "%f|%f|%f", 1.25, 99.96, -0.5);
  cr_assert_str_eq(ours, "1.3|100.0|-0.5");
}

/* Whatever the room: the beginning, its end marked, nothing behind it touched. */
Test(log, what_does_not_fit_is_cut) {
  static const char full[] = "<text |  text|   -42|00abcd|0x7f|  1.50>";
  for (size_t room = 1; room <= sizeof full + 3; room++) {
    size_t fits = room > sizeof full ? sizeof full - 1 : room - 1;
    memset(ours, '#', sizeof ours);
    size_t n = mu_format(ours, room, "<%-5s|%6s|%6d|%06x|%p|%6.2f>", "text", "text", -42, 0xabcd, (void *)0x7f, 1.5);
    CHECK(n == fits, "%zu of %zu, room %zu", n, fits, room);
    CHECK(memcmp(ours, full, fits) == 0 && ours[fits] == 0, "\"%s\", room %zu", ours, room);
    for (size_t i = fits + 1; i < sizeof ours; i++) CHECK(ours[i] == '#', "byte %zu, room %zu", i, room);
  }
}

/* ---- to standard error ---- */

static char message[8192];

/* What run writes to standard error: the first write, and how many there were. */
static int writes_of(void (*run)(void)) {
  int ends[2], saved = dup(STDERR_FILENO), count = 0;
  char rest[8192];
  cr_assert_eq(pipe2(ends, O_DIRECT | O_NONBLOCK | O_CLOEXEC), 0); /* a read gives one write */
  dup2(ends[1], STDERR_FILENO);
  run();
  dup2(saved, STDERR_FILENO);
  ssize_t n = read(ends[0], message, sizeof message - 1);
  message[n > 0 ? n : 0] = 0;
  for (count = n > 0; read(ends[0], rest, sizeof rest) > 0;) count++;
  close(ends[0]);
  close(ends[1]);
  close(saved);
  return count;
}

static void log_short(void) {
  mu_log("%s is %d", "it", 3);
}

Test(log, a_message_is_one_write) {
  cr_assert_eq(writes_of(log_short), 1);
  cr_assert_str_eq(message, "mesh-uffd: it is 3\n");
}

static void log_long(void) {
  char text[1001];
  memset(text, 'x', 1000);
  text[1000] = 0;
  mu_log("%s%d", text, 4);
}

Test(log, a_long_message_is_cut_and_still_a_line) {
  cr_assert_eq(writes_of(log_long), 1);
  size_t len = strlen(message);
  cr_assert(len > 400 && len <= 512, "%zu bytes", len);
  cr_assert_eq(strspn(message + 11, "x"), len - 12);
  cr_assert_eq(message[len - 1], '\n');
}

static void *log_without_descriptors(void *unused) {
  CHECK(unshare(CLONE_FILES) == 0 && close(STDERR_FILENO) == 0, "");
  mu_log_from_outside();
  mu_log("from %s", "afar");
  return unused;
}

static void log_in_thread(void) {
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, log_without_descriptors, NULL) == 0 && pthread_join(thread, NULL) == 0, "");
}

/* The kernel gives each opening of a pipe its own mode: not one write a read any more, but all of it. */
Test(log, a_thread_with_descriptors_of_its_own_is_heard) {
  writes_of(log_in_thread);
  cr_assert_str_eq(message, "mesh-uffd: from afar\n");
}

/* The program goes on behind a message, in a file that it did not open for appending, and on a socket. */
static void hear_from_outside(int to, int from) {
  char text[128] = "";
  int saved = dup(STDERR_FILENO);
  dup2(to, STDERR_FILENO);
  log_in_thread();
  ssize_t n = write(STDERR_FILENO, "me\n", 3);
  dup2(saved, STDERR_FILENO);
  close(saved);
  if (from == to) lseek(from, 0, SEEK_SET);
  if (n == 3) n = read(from, text, sizeof text - 1);
  cr_assert_str_eq(text, "mesh-uffd: from afar\nme\n", "%zd bytes: %s", n, text);
}

Test(log, what_is_said_from_outside_is_not_written_over) {
  int file = memfd_create("out", 0), ends[2];
  hear_from_outside(file, file);
  cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  hear_from_outside(ends[0], ends[1]);
}

Test(log, a_pipe_that_nobody_reads_holds_up_nobody, .timeout = 30) {
  int ends[2], saved = dup(STDERR_FILENO);
  static const char much[4096];
  cr_assert_eq(pipe2(ends, O_NONBLOCK), 0);
  while (write(ends[1], much, sizeof much) > 0) {
  }
  fcntl(ends[1], F_SETFL, 0);
  dup2(ends[1], STDERR_FILENO);
  log_in_thread();
  dup2(saved, STDERR_FILENO);
}

static void print_bytes(void) {
  mu_print("a\0b", 3);
  mu_print("", 0);
}

Test(log, bytes_are_printed_as_they_are) {
  cr_assert_eq(writes_of(print_bytes), 1);
  cr_assert_arr_eq(message, "a\0b", 4);
}

static int status;

enum { ABORTED = 42 };

/* An emulator prints a line of its own where a signal ends a process. */
static void note_abort(int number) {
  (void)number;
  _exit(ABORTED);
}

static void die_in_child(void) {
  pid_t child = fork();
  if (child == 0) signal(SIGABRT, note_abort);
  if (child == 0) mu_die("this is the %s", "end");
  waitpid(child, &status, 0);
}

Test(log, dying_says_why_and_aborts) {
  cr_assert_eq(writes_of(die_in_child), 1);
  cr_assert_str_eq(message, "mesh-uffd: this is the end\n");
  cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == ABORTED);
}

static volatile int one = 1;

static void fail_in_child(void) {
  pid_t child = fork();
  if (child == 0) {
    signal(SIGABRT, note_abort);
    MU_CHECK(one == 1);
    MU_CHECK(one == 2);
    _exit(0);
  }
  waitpid(child, &status, 0);
}

Test(log, a_failed_check_names_itself) {
  cr_assert_eq(writes_of(fail_in_child), 1);
  cr_assert_not_null(strstr(message, "one == 2 is false at "));
  cr_assert_not_null(strstr(message, "test_log.c:"));
  cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == ABORTED);
}
