/* SPDX-License-Identifier: Apache-2.0 */
/* usage: speed_start LIBRARY|- COUNT PROGRAM [ARGUMENT...]: starts PROGRAM so many times with LIBRARY preloaded, one
 * after the other. It has no preloaded library itself. */
#include "bench/speed.h"

#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

int main(int argc, char **argv) {
  if (argc < 4) give_up("usage: speed_start LIBRARY|- COUNT PROGRAM [ARGUMENT...]");
  if (strcmp(argv[1], "-") && setenv("LD_PRELOAD", argv[1], 1)) give_up("cannot set LD_PRELOAD");
  size_t count = number(argv[2]);
  for (size_t i = 0; i < count; i++) {
    pid_t child;
    int status;
    if (posix_spawn(&child, argv[3], NULL, NULL, &argv[3], environ)) give_up("cannot start the program");
    if (waitpid(child, &status, 0) != child || status) give_up("the program has failed");
  }
  return 0;
}
