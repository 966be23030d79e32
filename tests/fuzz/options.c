/* SPDX-License-Identifier: Apache-2.0 */
/* The option parser on any environment: the input is split at newlines into NAME=value strings. See driver.c. */
#include "src/options.h"
#include "src/sys.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must_be(uint32_t value, uint32_t low, uint32_t high) {
  if (value < low || value > high) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  enum { MOST = 32 };
  char *text = malloc(size + 1), *environment[MOST + 1];
  size_t n = 0;
  if (!text) return 0;
  if (size) memcpy(text, data, size);
  text[size] = 0;
  for (char *line = strtok(text, "\n"); line && n < MOST; line = strtok(NULL, "\n")) environment[n++] = line;
  environment[n] = NULL;
  mu_options_read(environment);
  mu_sys_hook = NULL;
  must_be(mu_options.mesh, 0, 1);
  must_be(mu_options.stats, 0, 2);
  must_be(mu_options.cpu_percent, 1, 100);
  must_be(mu_options.pause_us, 20, 100000);
  must_be(mu_options.decay_ms, 0, 1800000);
  must_be(mu_options.mapping_share, 0, 100);
  must_be(mu_options.best_tier, 1, 4);
  free(text);
  return 0;
}
