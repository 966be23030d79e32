/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Raw forks of a program of one thread while the mesher gives back what the transfer caches hold: the child's heap must
 * be one that it can use.
 */
#include "test.h"
#include <sys/syscall.h>
#include <sys/wait.h>

enum { CLASSES = 12, OBJECTS = 3000, ROUNDS = 300, LONG_ROUNDS = 3000 };

static void swing(void) {
  static void *object[CLASSES][OBJECTS];
  for (size_t c = 0; c < CLASSES; c++)
    for (size_t i = 0; i < OBJECTS; i++) CHECK((object[c][i] = malloc(16 + 16 * c)));
  for (size_t c = 0; c < CLASSES; c++)
    for (size_t i = 0; i < OBJECTS; i++) free(object[c][i]);
}

static void fork_once(void) {
  int status;
  pid_t pid = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  CHECK(pid >= 0);
  if (pid == 0) {
    alarm(30);
    swing();
    swing();
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECKF(status == 0, "status %x", (unsigned)status);
}

int main(int argc, char **argv) {
  if (argc == 1) { /* again, with a mesher that works all the time */
    CHECK(setenv("MESH_UFFD_TEST_EAGER", "1", 1) == 0);
    execl("/proc/self/exe", argv[0], "eager", (char *)NULL);
    FAIL("execl");
  }
  struct rng rng = rng_from(test_begin(), 0);
  test_watchdog(test_is_long() ? 600 : 120);
  free(opaque(malloc(16 << 20)));
  for (int i = 0; i < (test_is_long() ? LONG_ROUNDS : ROUNDS); i++) {
    swing();
    usleep((useconds_t)rng_below(&rng, 5000));
    fork_once();
  }
  puts("passed");
  return 0;
}
