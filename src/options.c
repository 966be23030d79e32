/* SPDX-License-Identifier: Apache-2.0 */
#include "src/options.h"
#include "src/log.h"
#include "src/sys.h"
#include <string.h>

struct mu_options mu_options = {.mesh = 1,
                                .cpu_percent = 5,
                                .pause_us = 200,
                                .decay_ms = 1000,
                                .mapping_share = 80,
                                .ring = 1,
                                .huge_pages = 1,
                                .abort = 1,
                                .best_tier = 1};

static const struct option {
  const char *name;
  uint32_t *value, low, high;
} table[] = {
    {"MALLOCSTATS", &mu_options.stats, 0, 2},
    {"MESH_UFFD_MESH", &mu_options.mesh, 0, 1},
    {"MESH_UFFD_CPU_PERCENT", &mu_options.cpu_percent, 1, 100},
    {"MESH_UFFD_PAUSE_US", &mu_options.pause_us, 20, 100000},
    {"MESH_UFFD_DECAY_MS", &mu_options.decay_ms, 0, 1800000},
    {"MESH_UFFD_MAPPINGS", &mu_options.mapping_share, 0, 100},
    {"MESH_UFFD_DROP_CAPS", &mu_options.drop_caps, 0, 1},
    {"MESH_UFFD_RING", &mu_options.ring, 0, 1},
    {"MESH_UFFD_HUGE_PAGES", &mu_options.huge_pages, 0, 2},
    {"MESH_UFFD_CHECK", &mu_options.check, 0, 2},
    {"MESH_UFFD_ABORT", &mu_options.abort, 0, 1},
    {"MESH_UFFD_PROFILE", &mu_options.profile, 0, 1073741824},
    {"MESH_UFFD_PROFILE_SIGNAL", &mu_options.profile_signal, 0, 64},
    {"MESH_UFFD_TEST_TIER", &mu_options.best_tier, 1, 4},
    {"MESH_UFFD_TEST_EAGER", &mu_options.eager, 0, 1},
    {"MESH_UFFD_TEST_PAGE_SIZE", &mu_options.test_page, 0, 65536},
    {"MESH_UFFD_TEST_NODES", &mu_options.nodes, 0, 8},
    {"MESH_UFFD_TEST_VALIDATE", &mu_options.validate, 0, 1},
};

/* Decimal digits alone; false also past 32 bits. */
static bool parse(const char *text, uint32_t *value) {
  uint64_t v = 0;
  if (!*text) return false;
  for (; *text; text++) {
    if (*text < '0' || *text > '9') return false;
    v = v * 10 + (uint64_t)(*text - '0');
    if (v > UINT32_MAX) return false;
  }
  *value = (uint32_t)v;
  return true;
}

static void set(const struct option *o, const char *text) {
  uint32_t v;
  if (parse(text, &v) && v >= o->low && v <= o->high)
    *o->value = v;
  else
    mu_log("%s=%.64s is not a number from %u to %u; using %u", o->name, text, o->low, o->high, *o->value);
}

/* Read by the test programs themselves, or where it is decided whether there is a heap at all (src/aside.c). */
static bool is_for_others(const char *name, size_t len) {
  static const char *const names[] = {"MESH_UFFD_TEST_LONG",   "MESH_UFFD_TEST_SEED",    "MESH_UFFD_TEST_ONLY",
                                      "MESH_UFFD_TEST_SKIP",   "MESH_UFFD_TEST_GENERIC", "MESH_UFFD_TEST_SLOW",
                                      "MESH_UFFD_EXPECT_TIER", "MESH_UFFD_DENY"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (strlen(names[i]) == len && memcmp(names[i], name, len) == 0) return true;
  return false;
}

MU_AT_START void mu_options_read(char *const *envp) {
  for (; *envp; envp++) {
    if ((*envp)[0] != 'M') continue;
    const char *equals = strchr(*envp, '=');
    if (!equals) continue;
    size_t len = (size_t)(equals - *envp);
    bool known = strncmp(*envp, "MESH_UFFD_", 10) != 0;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
      if (strlen(table[i].name) == len && memcmp(table[i].name, *envp, len) == 0) {
        set(&table[i], equals + 1);
        known = true;
      }
    if (len == 19 && memcmp(*envp, "MESH_UFFD_TEST_FAIL", 19) == 0) {
      mu_sys_hook_from_text(equals + 1);
      known = true;
    }
    if (len == 22 && memcmp(*envp, "MESH_UFFD_PROFILE_FILE", 22) == 0) {
      mu_options.profile_file = equals[1] ? equals + 1 : NULL;
      known = true;
    }
    known |= is_for_others(*envp, len);
    if (!known) mu_log("unknown option %.64s; ignored", *envp);
  }
}
