/* SPDX-License-Identifier: Apache-2.0 */
/* Unit tests of the heap with pages larger than the kernel's, from the environment: tests/pages.sh. */
#ifndef MU_UNIT_PAGES_H
#define MU_UNIT_PAGES_H

#include "src/options.h"
#include <stdlib.h>

__attribute__((constructor)) static void simulate_pages(void) {
  const char *size = getenv("MESH_UFFD_TEST_PAGE_SIZE");
  if (size) mu_options.test_page = (uint32_t)strtoul(size, NULL, 10);
}

#endif
