/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What fragments a heap, in small: a server answers requests, and one in thirty of them begins a session. Sessions are
 * small and stay; what the requests needed, of the same size, lay beside them and is gone.
 *
 *   cc -O1 -g sessions.c -o sessions
 *   ./sessions [SECONDS [THOUSANDS OF REQUESTS]]
 *
 * SECONDS: how long it goes on answering, slowly, afterwards (5). Every session is read back at the end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SESSION_BYTES = 240, AT_ONCE = 100000, SESSIONS_ONE_IN = 30 };

struct session {
  struct session *next;
  unsigned number;
  char data[SESSION_BYTES - 16];
};

static struct session *sessions;
static unsigned session_count;

static void *wanted(void *p) {
  if (!p) exit(1);
  return p;
}

__attribute__((noinline)) static char *read_request(unsigned number) {
  char *request = wanted(malloc(SESSION_BYTES));
  memset(request, (int)number, SESSION_BYTES);
  return request;
}

__attribute__((noinline)) static void begin_session(unsigned number) {
  struct session *s = wanted(malloc(sizeof *s));
  memset(s->data, (int)(number % 251), sizeof s->data);
  s->number = number;
  s->next = sessions;
  sessions = s;
  session_count++;
}

/* Many requests are under way at once. */
static void answer_requests(unsigned first, unsigned count) {
  static char *under_way[AT_ONCE];
  for (unsigned i = 0; i < count; i++) {
    under_way[i] = read_request(first + i);
    if (rand() % SESSIONS_ONE_IN == 0) begin_session(first + i);
  }
  for (unsigned i = 0; i < count; i++) free(under_way[i]);
}

int main(int argc, char **argv) {
  unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 5, thousands = argc > 2 ? (unsigned)atoi(argv[2]) : 100;
  for (unsigned n = 0; n < thousands * 1000; n += AT_ONCE) answer_requests(n, AT_ONCE);
  for (unsigned i = 0; i < seconds * 10; i++) {
    answer_requests(i, 10);
    nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
  }
  for (struct session *s = sessions; s; s = s->next)
    for (size_t i = 0; i < sizeof s->data; i++)
      if (s->data[i] != (char)(s->number % 251)) {
        fprintf(stderr, "session %u is damaged\n", s->number);
        return 1;
      }
  printf("%u sessions of %d bytes, all as they were\n", session_count, SESSION_BYTES);
  return 0;
}
