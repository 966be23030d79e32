/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fork while one thread waits for a stream that another reads from, which then allocates: libc's fork takes the lock
 * of the list of streams, the flush of all streams holds it and waits for the reader, and the reader wants memory. Then
 * that the locks of the streams are free again on both sides, also where the process had one thread.
 */
#include "test.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { LINE = 60000, ROUNDS = 20 }; /* fits into a pipe; its buffer grows beyond what a span holds */

static _Atomic int reader_id, flusher_id, forker_id;
static FILE *from;

static void *read_line(void *unused) {
  char *line = NULL;
  size_t room = 0;
  atomic_store(&reader_id, (int)syscall(SYS_gettid));
  CHECK(getline(&line, &room, from) == LINE);
  free(line);
  return unused;
}

static void *flush_all(void *unused) {
  atomic_store(&flusher_id, (int)syscall(SYS_gettid));
  fflush(NULL);
  return unused;
}

static void *use_streams(void *unused) {
  FILE *f = fopen("/dev/null", "w");
  CHECK(f);
  CHECK(fclose(f) == 0);
  fflush(NULL);
  free(malloc(1 << 20));
  return unused;
}

static void in_another_thread(void *(*run)(void *)) {
  pthread_t thread;
  CHECK(pthread_create(&thread, NULL, run, NULL) == 0);
  CHECK(pthread_join(thread, NULL) == 0);
}

static void *fork_once(void *unused) {
  int status;
  atomic_store(&forker_id, (int)syscall(SYS_gettid));
  pid_t pid = fork();
  CHECK(pid >= 0);
  if (pid == 0) {
    alarm(30 * test_slow());
    use_streams(NULL);
    in_another_thread(use_streams);
    _exit(0);
  }
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECKF(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
  return unused;
}

/* Until the kernel says that it sleeps in this system call. */
static void wait_until_in(_Atomic int *thread, int call) {
  char path[64], text[64];
  for (;;) {
    int id = atomic_load(thread), n = 0;
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", id);
    int fd = id ? open(path, O_RDONLY) : -1;
    if (fd >= 0) {
      n = (int)read(fd, text, sizeof text - 1);
      close(fd);
    }
    text[n > 0 ? n : 0] = 0;
    if (n > 0 && text[0] >= '0' && text[0] <= '9' && atoi(text) == call) return;
    usleep(1000);
  }
}

static void one_round(void) {
  static char line[LINE];
  pthread_t reader, flusher, forker;
  int ends[2];
  atomic_store(&reader_id, 0);
  atomic_store(&flusher_id, 0);
  atomic_store(&forker_id, 0);
  CHECK(pipe(ends) == 0);
  CHECK((from = fdopen(ends[0], "r")) != NULL);
  CHECK(pthread_create(&reader, NULL, read_line, NULL) == 0);
  wait_until_in(&reader_id, SYS_read);
  CHECK(pthread_create(&flusher, NULL, flush_all, NULL) == 0);
  wait_until_in(&flusher_id, SYS_futex);
  CHECK(pthread_create(&forker, NULL, fork_once, NULL) == 0);
  wait_until_in(&forker_id, SYS_futex);
  memset(line, 'x', sizeof line - 1);
  line[LINE - 1] = '\n';
  CHECK(write(ends[1], line, LINE) == LINE);
  CHECK(pthread_join(reader, NULL) == 0);
  CHECK(pthread_join(flusher, NULL) == 0);
  CHECK(pthread_join(forker, NULL) == 0);
  CHECK(fclose(from) == 0);
  CHECK(close(ends[1]) == 0);
}

int main(void) {
  test_begin();
  test_watchdog(60);
  fork_once(NULL); /* of one thread */
  in_another_thread(use_streams);
  int fd = open("/proc/self/syscall", O_RDONLY);
  char c;
  if (fd < 0 || read(fd, &c, 1) != 1) {
    puts("skipped: the kernel does not say in which call a thread waits");
    return TEST_SKIPPED;
  }
  close(fd);
  for (int i = 0; i < ROUNDS; i++) one_round();
  puts("passed");
  return 0;
}
