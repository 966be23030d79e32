/* SPDX-License-Identifier: Apache-2.0 */
#include "src/pprof.h"
#include "src/sampling.h"
#include "src/unwind.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>
#include <unwind.h>

static bool near(double a, double b, double relative) {
  double difference = a > b ? a - b : b - a, size = b < 0 ? -b : b;
  return difference <= relative * size + 1e-300;
}

TestSuite(profile, .timeout = 60);

/* ---- sampling ---- */

Test(profile, logarithm) {
  static const double known[][2] = {{1, 0},
                                    {2, 0.693147180559945309},
                                    {10, 2.302585092994045684},
                                    {0.5, -0.693147180559945309},
                                    {0x1p-53, -36.7368005696771013991},
                                    {1.9999999, 0.693147130559943},
                                    {1e-5, -11.512925464970228}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    cr_assert(near(mu_ln(known[i][0]), known[i][1], 1e-10), "ln %g: %.15g", known[i][0], mu_ln(known[i][0]));
}

Test(profile, share_of_objects_that_are_sampled) {
  static const double known[][2] = {{0, 0},
                                    {1e-9, 9.999999995e-10},
                                    {0.001, 0.000999500166624978},
                                    {0.5, 0.393469340287366577},
                                    {1, 0.632120558828557678},
                                    {10, 0.999954600070237515},
                                    {50, 1}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    cr_assert(near(mu_share_sampled(known[i][0]), known[i][1], 1e-10), "%g: %.15g", known[i][0],
              mu_share_sampled(known[i][0]));
}

/* Gaps must average the mean, and be spread as widely: exponential. */
Test(profile, gaps_between_samples) {
  enum { N = 1000000, MEAN = 1000 };
  uint64_t rng = 20240229;
  double sum = 0, longer = 0;
  for (int i = 0; i < N; i++) {
    int64_t gap = mu_next_sample(&rng, MEAN);
    if (gap < 1) cr_assert_fail("%ld", (long)gap);
    sum += (double)gap;
    longer += gap > 3 * MEAN;
  }
  cr_assert(near(sum / N, MEAN + 0.5, 0.006), "mean %f", sum / N);
  cr_assert(near(longer / N, 0.049787, 0.03), "longer than three times the mean: %f", longer / N);
}

/* ---- the stack ---- */

#ifdef __GLIBC__ /* musl describes no frames of its own, musl-gcc's programs have no table of theirs */
enum { DEPTH = 64 };
static uintptr_t ours[DEPTH];
static uintptr_t libgccs[DEPTH];
static unsigned our_depth;
static int libgccs_depth;

static _Unwind_Reason_Code note_frame(struct _Unwind_Context *frame, void *unused) {
  (void)unused;
  uintptr_t at = _Unwind_GetIP(frame);
  if (!at || libgccs_depth == DEPTH) return _URC_END_OF_STACK;
  libgccs[libgccs_depth++] = at;
  return _URC_NO_REASON;
}

/* Both from one place; ours are calls, libgcc's are where they return to. Here the library is the program, so the
 * frames of its own are left in; mu_unwind's caller is the first. Not by backtrace(): sanitizers
 * put a frame of their own in between. */
static void __attribute__((noinline)) look(void) {
  our_depth = mu_unwind(ours, DEPTH);
  libgccs_depth = 0;
  _Unwind_Backtrace(note_frame, NULL);
  __asm__ volatile(""); /* no tail call: this frame counts */
}

static int look_once(const void *a, const void *b) {
  if (!our_depth) look();
  return *(const char *)a - *(const char *)b;
}

static void on_signal(int signal) {
  (void)signal;
  look();
}

static int __attribute__((noinline)) deeper(unsigned n, char *text, void (*last)(char *)) {
  char *room = __builtin_alloca(64 * n + 1); /* the frame is of a size that is not known before */
  memset(room, (int)n, 64 * n + 1);
  if (n)
    deeper(n - 1, room, last);
  else
    last(room);
  return text[0] = room[n];
}

static void sort(char *text) {
  char letters[8] = "sorting";
  qsort(letters, 7, 1, look_once);
  text[0] = letters[0];
}

static void interrupt(char *text) {
  text[0] = (char)raise(SIGUSR1);
}

static void compare(int least) {
  cr_assert_geq(libgccs_depth, least);
  cr_assert_eq((int)our_depth, libgccs_depth, "%u frames, libgcc finds %d", our_depth, libgccs_depth);
  int same = 0;
  for (int i = 1; i < libgccs_depth; i++) {
    uintptr_t theirs = libgccs[i];
    bool is_same = ours[i] == theirs - 1 || ours[i] == theirs; /* the latter where a signal came */
    cr_assert(is_same, "frame %d: %#lx, libgcc has %#lx", i, (unsigned long)ours[i], (unsigned long)theirs);
    same++;
  }
  cr_assert_geq(same, least - 1);
}

Test(profile, the_stack_is_the_one_that_libgcc_finds) {
  char text[1];
  deeper(9, text, sort);
  compare(12);
}

Test(profile, through_a_signal_handler) {
  char text[1];
  if (!getauxval(AT_SYSINFO_EHDR)) cr_skip_test("an emulator without a vDSO, which describes the frames of signals");
  signal(SIGUSR1, on_signal);
  deeper(5, text, interrupt);
  compare(10);
}

Test(profile, no_more_frames_than_there_is_room_for) {
  uintptr_t few[4] = {0, 0, 0, 77};
  cr_assert_eq(mu_unwind(few, 3), 3);
  cr_assert_eq(few[3], 77);
  cr_assert_eq(mu_unwind(few, 0), 0);
}
#endif

/* ---- the file ---- */

Test(profile, a_file_that_gzip_reads) {
  enum { N = 200000 };
  static struct mu_pprof out;
  static struct mu_message m;
  char path[] = "/tmp/mesh-uffd-test-XXXXXX", command[128];
  int fd = mkstemp(path);
  cr_assert_geq(fd, 0);
  mu_pprof_open(&out, path);
  unsigned long bytes = 0;
  for (int i = 0; i < N; i++) {
    mu_pprof_text(&out, 6, "text");
    bytes += 6;
  }
  uint32_t start = mu_packed(&m, 1);
  for (int i = 0; i < 300; i++) mu_value(&m, 0xffffffffffffffff);
  mu_packed_end(&m, start);
  cr_assert_eq(m.used, 1 + 3 + 3000);
  mu_pprof_message(&out, 2, &m);
  bytes += 1 + 2 + m.used;
  cr_assert_eq(mu_pprof_close(&out), 0);
  snprintf(command, sizeof command, "test $(gzip -dc <%s | wc -c) = %lu", path, bytes);
  cr_assert_eq(system(command), 0, "%s", command);
  close(fd);
  unlink(path);
}

Test(profile, what_has_no_room_in_a_message_is_cut) {
  static struct mu_message m, inner;
  for (int i = 0; i < MU_PPROF_MESSAGE; i++) mu_number(&m, 1, UINT64_MAX);
  cr_assert_leq(m.used, sizeof m.bytes);
  cr_assert_geq(m.used, sizeof m.bytes - 32);
  mu_number(&inner, 1, 5);
  uint32_t before = m.used;
  for (int i = 0; i < 20; i++) mu_inner(&m, 2, &inner);
  cr_assert_leq(m.used - before, 32);
}
