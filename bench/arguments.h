/* SPDX-License-Identifier: Apache-2.0 */
/* Options of a letter, with a number or without one, as programs of this directory take them from their scripts. */
#ifndef BENCH_ARGUMENTS_H
#define BENCH_ARGUMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct argument {
  char letter;
  void *value; /* an unsigned integer of so many bytes; a flag gets 1 */
  size_t bytes;
  bool is_flag;
};
#define NUMBER(letter, variable)                                                                                       \
  { letter, &(variable), sizeof(variable), false }
#define FLAG(letter, variable)                                                                                         \
  { letter, &(variable), sizeof(variable), true }

static inline bool argument_set(const struct argument *a, const char *text) {
  char *end;
  uint64_t n = a->is_flag ? 1 : strtoull(text, &end, 10);
  if (!a->is_flag && (!*text || *end)) return false;
  uint32_t half = (uint32_t)n;
  memcpy(a->value, a->bytes == sizeof n ? (void *)&n : (void *)&half, a->bytes);
  return a->bytes == sizeof n || n == half;
}

/* False for an option that is not there, and for what is no number. optind is behind them then. */
static inline bool arguments_read(int argc, char **argv, const struct argument *known, size_t count) {
  char letters[64], *end = letters;
  for (size_t i = 0; i < count; i++) {
    *end++ = known[i].letter;
    if (!known[i].is_flag) *end++ = ':';
  }
  *end = 0;
  for (int option; (option = getopt(argc, argv, letters)) != -1;) {
    size_t i = 0;
    while (i < count && known[i].letter != option) i++;
    if (i == count || !argument_set(&known[i], optarg)) return false;
  }
  return true;
}

#endif
