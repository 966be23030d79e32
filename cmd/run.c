/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/options.h"
#include "cmd/program.h"
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VARIABLE(id, flag, kind, variable, fixed, low, high) {flag, variable, fixed, low, high},
static const struct variable {
  const char *flag, *name, *without; /* what it is set to where no argument is given */
  uint64_t low, high;
} variables[] = {LIBRARY_VARIABLES(VARIABLE)};

static void set_variable(const char *command, const struct variable *v, const char *value) {
  uint64_t number;
  if (!value) value = v->without;
  if (v->high && !parse_number(value, v->low, v->high, &number))
    die_usage(command, "--%s: '%s' is not a number from %" PRIu64 " to %" PRIu64, v->flag, value, v->low, v->high);
  if (setenv(v->name, value, 1) < 0) die(FAILED, "no memory");
}

bool library_option(const char *command, int option, const char *value, struct library_options *o) {
  switch (option) {
  case 'q':
    return o->quiet = true;
  case LIBRARY_STRICT:
    return o->strict = true;
  case LIBRARY_FILE:
    o->library = value;
    return true;
  default:
    option -= LIBRARY_STRICT + 1;
    if (option < 0 || option >= (int)(sizeof variables / sizeof *variables)) return false;
    set_variable(command, &variables[option], value);
    return true;
  }
}

static void check_effect(const struct library_options *o, const char *name, const char *path) {
  char why[512], mend[512];
  enum effect effect = program_effect(path, getenv("MESH_UFFD_DENY"), why, mend);
  if (effect == AFFECTED || (o->quiet && !o->strict)) return;
  const char *what = effect == PARTLY       ? "will be affected in part"
                     : effect == UNAFFECTED ? "will not be affected"
                                            : "cannot run with the library";
  complain("warning: %s %s: %s", name, what, why);
  if (*mend) complain("         to change that: %s", mend);
  if (o->strict && effect != PARTLY) exit(FAILED);
}

static void find_library(const struct library_options *o, char path[4096]) {
  char why[512], absolute[PATH_MAX];
  if (o->library) {
    if (!realpath(o->library, absolute)) die(FAILED, "%s: %s", o->library, strerror(errno));
    snprintf(path, 4096, "%s", absolute);
  } else if (!library_find(path)) {
    die(FAILED, "libmesh-uffd is neither installed (%s) nor in the build tree; see --library", path);
  }
  if (!library_fits(path, why)) die(FAILED, "%s: %s", path, why);
}

void library_prepare(const struct library_options *o, const char *program, char path[4096]) {
  char library[4096];
  enum status found = program_find(program, path);
  if (found != DONE)
    die(found, "%s: %s", program, found == NOT_FOUND ? "not found" : "cannot be run: no file, or not executable");
  find_library(o, library);
  check_effect(o, program, path);
  library_preload(library);
}

static int run_run(int argc, char **argv) {
  static const struct option options[] = {LIBRARY_OPTIONS_LIST, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0}};
  struct library_options o = {NULL, false, false};
  char path[4096];
  int c;
  while ((c = getopt_long(argc, argv, "+qh", options, NULL)) >= 0) {
    if (c == 'h') {
      fputs(run_command.help, stdout);
      return DONE;
    }
    if (!library_option("run", c, optarg, &o)) die_usage("run", "wrong option");
  }
  if (optind == argc) die_usage("run", "a program is needed");
  library_prepare(&o, argv[optind], path);
  execv(path, argv + optind);
  if (errno == ENOEXEC) { /* a script without a first line that says so: as execvp does */
    char **shell = calloc((size_t)(argc - optind) + 2, sizeof *shell);
    if (!shell) die(FAILED, "no memory");
    shell[0] = (char *)(uintptr_t) "/bin/sh";
    shell[1] = path;
    memcpy(shell + 2, argv + optind + 1, (size_t)(argc - optind - 1) * sizeof *shell);
    execv(shell[0], shell);
  }
  die(errno == ENOENT ? NOT_FOUND : CANNOT_RUN, "%s: %s", path, strerror(errno));
}

const struct command run_command = {"run", "run a program under mesh-uffd",
                                    "usage: mesh-uffd run [OPTION...] [--] PROGRAM [ARGUMENT...]\n\n"
                                    "Runs a program with libmesh-uffd as its malloc. Warns when the program would not "
                                    "be affected, and says why.\n\n" LIBRARY_OPTIONS_HELP
                                    "  -h, --help              this text\n\n"
                                    "Exit status: that of the program; 1 the library is not there, or, with --strict, "
                                    "has no effect; 2 wrong arguments;\n"
                                    "126 the program cannot be run; 127 it is not found.\n",
                                    run_run};
