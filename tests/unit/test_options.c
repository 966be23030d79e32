/* SPDX-License-Identifier: Apache-2.0 */
#include "src/options.h"
#include "src/sys.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct option {
  const char *name;
  uint32_t *value, low, high, otherwise;
} options[] = {
    {"MALLOCSTATS", &mu_options.stats, 0, 2, 0},
    {"MESH_UFFD_MESH", &mu_options.mesh, 0, 1, 1},
    {"MESH_UFFD_CPU_PERCENT", &mu_options.cpu_percent, 1, 100, 5},
    {"MESH_UFFD_PAUSE_US", &mu_options.pause_us, 20, 100000, 200},
    {"MESH_UFFD_DECAY_MS", &mu_options.decay_ms, 0, 1800000, 1000},
    {"MESH_UFFD_MAPPINGS", &mu_options.mapping_share, 0, 100, 80},
    {"MESH_UFFD_DROP_CAPS", &mu_options.drop_caps, 0, 1, 0},
    {"MESH_UFFD_HUGE_PAGES", &mu_options.huge_pages, 0, 2, 1},
    {"MESH_UFFD_RING", &mu_options.ring, 0, 1, 1},
    {"MESH_UFFD_CHECK", &mu_options.check, 0, 2, 0},
    {"MESH_UFFD_ABORT", &mu_options.abort, 0, 1, 1},
    {"MESH_UFFD_PROFILE", &mu_options.profile, 0, 1073741824, 0},
    {"MESH_UFFD_PROFILE_SIGNAL", &mu_options.profile_signal, 0, 64, 0},
    {"MESH_UFFD_TEST_TIER", &mu_options.best_tier, 1, 4, 1},
    {"MESH_UFFD_TEST_EAGER", &mu_options.eager, 0, 1, 0},
    {"MESH_UFFD_TEST_PAGE_SIZE", &mu_options.test_page, 0, 65536, 0},
    {"MESH_UFFD_TEST_VALIDATE", &mu_options.validate, 0, 1, 0},
};
enum { OPTIONS = sizeof options / sizeof *options };

static char message[4096];

/* Reads one variable; what standard error got of it is in message. */
static void read_option(const char *text) {
  char copy[512];
  char *envp[] = {copy, NULL};
  int ends[2], saved = dup(STDERR_FILENO);
  snprintf(copy, sizeof copy, "%s", text);
  cr_assert_eq(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
  dup2(ends[1], STDERR_FILENO);
  mu_options_read(envp);
  dup2(saved, STDERR_FILENO);
  ssize_t n = read(ends[0], message, sizeof message - 1);
  message[n > 0 ? n : 0] = 0;
  close(saved);
  close(ends[0]);
  close(ends[1]);
}

static void set(const struct option *o, const char *value) {
  char text[512];
  snprintf(text, sizeof text, "%s=%s", o->name, value);
  read_option(text);
}

static void set_number(const struct option *o, uint64_t value) {
  char text[32];
  snprintf(text, sizeof text, "%zu", (size_t)value);
  set(o, text);
}

static void check_others(const struct option *but) {
  for (const struct option *o = options; o < options + OPTIONS; o++)
    if (o != but) cr_assert_eq(*o->value, o->otherwise, "%s", o->name);
}

/* Refused, with a message that says what would be right and what holds instead. */
static void check_refused(const struct option *o, const char *value) {
  char expected[512];
  uint32_t before = *o->value;
  set(o, value);
  snprintf(expected, sizeof expected, "mesh-uffd: %s=%.64s is not a number from %u to %u; using %u\n", o->name, value,
           o->low, o->high, before);
  cr_assert_str_eq(message, expected);
  cr_assert_eq(*o->value, before);
}

TestSuite(options, .timeout = 30);

Test(options, defaults) {
  check_others(NULL);
}

Test(options, any_value_of_the_range_is_taken_in_silence) {
  for (const struct option *o = options; o < options + OPTIONS; o++) {
    uint32_t values[] = {o->low, o->high, o->low + (o->high - o->low) / 2};
    for (int i = 0; i < 3; i++) {
      set_number(o, values[i]);
      cr_assert_str_eq(message, "", "%s=%u", o->name, values[i]);
      cr_assert_eq(*o->value, values[i], "%s=%u", o->name, values[i]);
      check_others(o);
    }
    *o->value = o->otherwise;
  }
}

Test(options, values_out_of_range_are_refused) {
  for (const struct option *o = options; o < options + OPTIONS; o++) {
    char text[32];
    snprintf(text, sizeof text, "%u", o->high + 1);
    check_refused(o, text);
    snprintf(text, sizeof text, "%zu", ((size_t)1 << 32) + o->high); /* in range in 32 bits */
    check_refused(o, text);
    if (o->low) {
      snprintf(text, sizeof text, "%u", o->low - 1);
      check_refused(o, text);
    }
  }
  check_others(NULL);
}

Test(options, what_is_no_number_is_refused) {
  static const char *const bad[] = {
      "",   "x",  "1x",  "x1",  "-1",  "+1", " 1",         "1 ",         "0x1",
      "1e", "1.", "1.0", "1,0", "yes", "=1", "4294967296", "4294967297", "18446744073709551617",
  };
  for (const struct option *o = options; o < options + OPTIONS; o++)
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) check_refused(o, bad[i]);
  check_others(NULL);
}

Test(options, what_was_set_before_stays) {
  set_number(&options[3], 999);
  check_refused(&options[3], "nonsense");
  cr_assert_eq(mu_options.pause_us, 999);
}

Test(options, overlong_values_are_refused_and_cut_in_the_message) {
  char text[301];
  memset(text, '9', 300);
  text[300] = 0;
  check_refused(&options[2], text);
  memset(text, 'a', 300);
  check_refused(&options[2], text);
  memset(text, '0', 299);
  text[299] = '7';
  set(&options[2], text);
  cr_assert_str_eq(message, "");
  cr_assert_eq(mu_options.cpu_percent, 7, "zeros in front are digits too");
}

Test(options, unknown_names_are_named) {
  read_option("MESH_UFFD_MESHX=1");
  cr_assert_str_eq(message, "mesh-uffd: unknown option MESH_UFFD_MESHX=1; ignored\n");
  read_option("MESH_UFFD_MES=1");
  cr_assert_str_eq(message, "mesh-uffd: unknown option MESH_UFFD_MES=1; ignored\n");
  read_option("MESH_UFFD_=1");
  cr_assert_str_eq(message, "mesh-uffd: unknown option MESH_UFFD_=1; ignored\n");
  check_others(NULL);
}

Test(options, other_variables_are_nobodys_business) {
  static const char *const other[] = {
      "PATH=/bin",         "M=1",          "=1",    "",        "MESH_UFFD_MESH",  "MESH_UFFD_NOTHING", "MALLOCSTATSX=1",
      "XMESH_UFFD_MESH=0", "MESH_UFFD=no", "MESH=", "MALLOC=", "mesh_uffd_mesh=0"};
  for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
    read_option(other[i]);
    cr_assert_str_eq(message, "", "%s", other[i]);
  }
  check_others(NULL);
}

Test(options, the_last_of_several_counts) {
  char first[] = "MESH_UFFD_PAUSE_US=300", other[] = "HOME=/", second[] = "MALLOCSTATS=2",
       third[] = "MESH_UFFD_PAUSE_US=400";
  char *envp[] = {first, other, second, third, NULL};
  mu_options_read(envp);
  cr_assert_eq(mu_options.pause_us, 400);
  cr_assert_eq(mu_options.stats, 2);
}

Test(options, names_for_tests_are_known) {
  read_option("MESH_UFFD_TEST_LONG=1");
  cr_assert_str_eq(message, "");
  read_option("MESH_UFFD_TEST_SEED=123");
  cr_assert_str_eq(message, "");
  read_option("MESH_UFFD_PROFILE_FILE=");
  cr_assert_str_eq(message, "");
  cr_assert_null(mu_options.profile_file);
  read_option("MESH_UFFD_PROFILE_FILE=a=b");
  cr_assert_str_eq(message, "");
  cr_assert_not_null(mu_options.profile_file);
  read_option("MESH_UFFD_TEST_FAIL=getpid:1:5");
  cr_assert_str_eq(message, "");
  cr_assert_not_null(mu_sys_hook);
  cr_assert_not(mu_sys_refused(MU_SYS_getpid));
  cr_assert(mu_sys_refused(MU_SYS_getpid));
}
