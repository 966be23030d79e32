/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/cmd.h"
#include <mesh-uffd.h>
#include <string.h>

#define TEXT_(x) #x
#define TEXT(x)  TEXT_(x)
#define VERSION  TEXT(MESH_UFFD_VERSION_MAJOR) "." TEXT(MESH_UFFD_VERSION_MINOR) "." TEXT(MESH_UFFD_VERSION_PATCH)

static const struct command *const commands[] = {&run_command, &doctor_command, &stat_command,
                                                 &top_command, &map_command,    &record_command};
enum { COMMANDS = sizeof commands / sizeof *commands };

static const struct command *find(const char *name) {
  for (size_t i = 0; i < COMMANDS; i++)
    if (strcmp(commands[i]->name, name) == 0) return commands[i];
  return NULL;
}

static void print_help(FILE *to) {
  fprintf(to, "usage: mesh-uffd [--help | --version] COMMAND [ARGUMENT...]\n\n"
              "Runs programs under a malloc that compacts their heap, and shows what it does.\n\n");
  for (size_t i = 0; i < COMMANDS; i++) fprintf(to, "  %-8s %s\n", commands[i]->name, commands[i]->what);
  fprintf(to, "  %-8s %s\n\nmesh-uffd COMMAND --help says more.\n", "help", "the help of a command");
}

static int help(int argc, char **argv) {
  if (argc < 2) {
    print_help(stdout);
    return DONE;
  }
  const struct command *command = find(argv[1]);
  if (!command) {
    complain("'%s' is not a command; see 'mesh-uffd help'", argv[1]);
    return USAGE;
  }
  fputs(command->help, stdout);
  return DONE;
}

static int dispatch(int argc, char **argv) {
  const char *name = argv[0];
  if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) return help(argc, argv);
  if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
    puts("mesh-uffd " VERSION);
    return DONE;
  }
  const struct command *command = find(name);
  if (!command) {
    complain("'%s' is not %s; see 'mesh-uffd help'", name, *name == '-' ? "an option" : "a command");
    return USAGE;
  }
  /* Behind "--", and behind the program that run and record start, a --help is not ours; they see to it. */
  if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
    fputs(command->help, stdout);
    return DONE;
  }
  return command->run(argc, argv);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    print_help(stderr);
    return USAGE;
  }
  int status = dispatch(argc - 1, argv + 1);
  finish_output(stdout, "standard output");
  return status;
}
