/* SPDX-License-Identifier: Apache-2.0 */
/* The library's options as flags, for the commands that start programs. */
#ifndef CMD_OPTIONS_H
#define CMD_OPTIONS_H

#include "cmd/cmd.h"
#include <getopt.h>

/* Flag, kind of argument, variable, what it is set to where no argument is given, and the range of a number (0 to 0:
 * any text): all of README's table of options but what is for tests. */
#define LIBRARY_VARIABLES(X)                                                                                           \
  X(NO_MESH, "no-mesh", no_argument, "MESH_UFFD_MESH", "0", 0, 0)                                                      \
  X(CPU_PERCENT, "cpu-percent", required_argument, "MESH_UFFD_CPU_PERCENT", NULL, 1, 100)                              \
  X(PAUSE_US, "pause-us", required_argument, "MESH_UFFD_PAUSE_US", NULL, 20, 100000)                                   \
  X(DECAY_MS, "decay-ms", required_argument, "MESH_UFFD_DECAY_MS", NULL, 0, 1800000)                                   \
  X(MAPPINGS, "mappings", required_argument, "MESH_UFFD_MAPPINGS", NULL, 0, 100)                                       \
  X(DROP_CAPS, "drop-caps", no_argument, "MESH_UFFD_DROP_CAPS", "1", 0, 0)                                             \
  X(HUGE_PAGES, "huge-pages", required_argument, "MESH_UFFD_HUGE_PAGES", NULL, 0, 2)                                   \
  X(NO_RING, "no-ring", no_argument, "MESH_UFFD_RING", "0", 0, 0)                                                      \
  X(CHECK, "check", optional_argument, "MESH_UFFD_CHECK", "1", 0, 2)                                                   \
  X(NO_ABORT, "no-abort", no_argument, "MESH_UFFD_ABORT", "0", 0, 0)                                                   \
  X(DENY, "deny", required_argument, "MESH_UFFD_DENY", NULL, 0, 0)                                                     \
  X(STATS, "stats", optional_argument, "MALLOCSTATS", "1", 0, 2)                                                       \
  X(PROFILE, "profile", optional_argument, "MESH_UFFD_PROFILE", "524288", 0, 1073741824)                               \
  X(PROFILE_FILE, "profile-file", required_argument, "MESH_UFFD_PROFILE_FILE", NULL, 0, 0)                             \
  X(PROFILE_SIGNAL, "profile-signal", required_argument, "MESH_UFFD_PROFILE_SIGNAL", NULL, 0, 64)

#define LIBRARY_NUMBER(id, ...)             LIBRARY_##id,
#define LIBRARY_OPTION(id, flag, kind, ...) {flag, kind, NULL, LIBRARY_##id},

enum { LIBRARY_FILE = 256, LIBRARY_STRICT, LIBRARY_VARIABLES(LIBRARY_NUMBER) };

/* In front of a command's own options. */
#define LIBRARY_OPTIONS_LIST                                                                                           \
  LIBRARY_VARIABLES(LIBRARY_OPTION){"library", required_argument, NULL, LIBRARY_FILE},                                 \
      {"strict", no_argument, NULL, LIBRARY_STRICT}, {                                                                 \
    "quiet", no_argument, NULL, 'q'                                                                                    \
  }

#define LIBRARY_OPTIONS_HELP                                                                                           \
  "      --no-mesh           no meshing; empty pages still go back\n"                                                  \
  "      --cpu-percent N     background work, percent of one core (5)\n"                                               \
  "      --pause-us N        how long a pass may hold a barrier (200)\n"                                               \
  "      --decay-ms N        unused pages go back after this (1000)\n"                                                 \
  "      --mappings N        percent of vm.max_map_count for meshing (80)\n"                                           \
  "      --drop-caps         gives up CAP_SYS_PTRACE once userfaultfd is open\n"                                       \
  "      --huge-pages N      0: none; 1: where the system gives them to every program; 2: asks for them (1)\n"         \
  "      --no-ring           does without io_uring\n"                                                                  \
  "      --check[=LEVEL]     every free is checked; 2: writes past an object's end are found too (1)\n"                \
  "      --no-abort          goes on after a misuse of the heap that was noticed\n"                                    \
  "      --deny NAMES        programs that are left alone, separated by colons\n"                                      \
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
