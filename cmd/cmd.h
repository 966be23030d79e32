/* SPDX-License-Identifier: Apache-2.0 */
/* The command mesh-uffd: what its files share. It is a program like any other, and reads processes from outside. */
#ifndef CMD_H
#define CMD_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

enum status {
  DONE = 0,
  FAILED = 1,
  USAGE = 2,       /* wrong arguments */
  NO_PROCESS = 3,  /* does not exist, or has ended */
  NOT_ALLOWED = 4, /* to look into it */
  NO_FIGURES = 5,  /* it does not run under the library, or has no figures yet */
  CANNOT_RUN = 126,
  NOT_FOUND = 127,
};

/* "mesh-uffd: ..." on standard error. */
__attribute__((format(printf, 1, 2))) void complain(const char *format, ...);
_Noreturn __attribute__((format(printf, 2, 3))) void die(enum status status, const char *format, ...);
/* For wrong arguments: points to the command's help. */
_Noreturn __attribute__((format(printf, 2, 3))) void die_usage(const char *command, const char *format, ...);

/* Ends the program if standard output could not be written. */
void finish_output(FILE *to, const char *name);

/* A decimal number from low to high, alone in text. */
bool parse_number(const char *text, uint64_t low, uint64_t high, uint64_t *value);
/* Seconds, with a fraction, as milliseconds. */
bool parse_seconds(const char *text, uint64_t *ms);
int parse_pid(const char *command, const char *text);

/* For commands that look more than once: options -i, -n and -h, or wrong ones. False: it was -h, and has been obeyed.
 */
struct looks {
  uint64_t interval_ms, count; /* unchanged where not given */
};
struct command;
bool looks_option(const struct command *command, int option, const char *value, struct looks *looks);

/* The contents of a small file, to be freed; NULL with errno set. */
char *read_file(const char *path, size_t *length);
/* The number behind a name at the start of a line, e.g. "Rss:"; false if there is none. */
bool find_number(const char *text, const char *name, unsigned base, uint64_t *value);
/* A line without its name and newline, into `out`. */
bool find_line(const char *text, const char *name, char *out, size_t room);

uint64_t now_ns(void);
void sleep_ms(uint64_t ms);
double mib(uint64_t bytes);

/* Set by SIGINT and SIGTERM after catch_interrupts. */
extern volatile sig_atomic_t interrupted;
void catch_interrupts(void);

struct command {
  const char *name, *what;
  const char *help;
  int (*run)(int argc, char **argv); /* argv[0] is the command's name; its result is the exit status */
};
extern const struct command run_command, doctor_command, stat_command, top_command, map_command, record_command;

#endif
