/* SPDX-License-Identifier: Apache-2.0 */
#include "src/sys.h"
#include "uffd/internal.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

enum { MAPPED_PRIVATE = 1 << 2 };

/* The kernel leaves pages of a private file mapping that were not stored to out of a core file, since they are in the
 * file: ours is gone by then. */
void mu_have_meshed_pages_dumped(void) {
  static const char path[] = "/proc/self/coredump_filter";
  char text[32];
  if (mu_read_file(path, text, sizeof text) <= 0) return;
  unsigned long filter = strtoul(text, NULL, 16);
  if (filter & MAPPED_PRIVATE) return;
  int fd = mu_open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return;
  size_t n = 0;
  text[n++] = '0';
  text[n++] = 'x';
  for (int shift = 28; shift >= 0; shift -= 4) text[n++] = "0123456789abcdef"[(filter | MAPPED_PRIVATE) >> shift & 15];
  mu_write(fd, text, n);
  mu_close(fd);
}
