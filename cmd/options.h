/* SPDX-License-Identifier: Apache-2.0 */
/* The library's options as flags, for the commands that start programs. */
#ifndef CMD_OPTIONS_H
#define CMD_OPTIONS_H

#include "cmd/cmd.h"
#include <getopt.h>

enum { LIBRARY_OPTIONS = 14, FIRST_LIBRARY_OPTION = 256 };

/* In front of a command's own options; their values are FIRST_LIBRARY_OPTION and up. */
#define LIBRARY_OPTIONS_LIST                                                                                           \
  {"library", required_argument, NULL, 256}, {"no-mesh", no_argument, NULL, 257},                                      \
      {"cpu-percent", required_argument, NULL, 258}, {"pause-us", required_argument, NULL, 259},                       \
      {"decay-ms", required_argument, NULL, 260}, {"mappings", required_argument, NULL, 261},                          \
      {"drop-caps", no_argument, NULL, 262}, {"no-ring", no_argument, NULL, 263},                                      \
      {"stats", optional_argument, NULL, 264}, {"profile", optional_argument, NULL, 265},                              \
      {"profile-file", required_argument, NULL, 266}, {"profile-signal", required_argument, NULL, 267},                \
      {"strict", no_argument, NULL, 268}, {                                                                            \
    "quiet", no_argument, NULL, 'q'                                                                                    \
  }

#define LIBRARY_OPTIONS_HELP                                                                                           \
  "      --no-mesh           no meshing; empty pages still go back\n"                                                  \
  "      --cpu-percent N     background work, percent of one core (5)\n"                                               \
  "      --pause-us N        how long a pass may hold a barrier (200)\n"                                               \
  "      --decay-ms N        unused pages go back after this (1000)\n"                                                 \
  "      --mappings N        percent of vm.max_map_count for meshing (80)\n"                                           \
  "      --drop-caps         gives up CAP_SYS_PTRACE once userfaultfd is open\n"                                       \
  "      --no-ring           does without io_uring\n"                                                                  \
  "      --stats[=LEVEL]     statistics on standard error at exit; 2: of each size class too\n"                        \
  "      --profile[=BYTES]   heap profile: a sample each so many bytes (524288)\n"                                     \
  "      --profile-file FILE where it goes at exit; %p: process, %n: number of the profile\n"                          \
  "      --profile-signal N  this signal writes it\n"                                                                  \
  "      --library FILE      the library to preload, instead of the one that belongs to this command\n"                \
  "      --strict            fails where it would warn that the program is not affected\n"                             \
  "  -q, --quiet             no such warnings\n"

struct library_options {
  const char *library;
  bool strict, quiet;
};

/* One option of the above: sets the environment. False when it is none of them. */
bool library_option(const char *command, int option, const char *value, struct library_options *o);

/* Makes the environment ready for the program argv[0]: finds it, warns, preloads. path: the program's file. */
void library_prepare(const struct library_options *o, const char *program, char path[4096]);

#endif
