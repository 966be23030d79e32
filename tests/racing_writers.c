/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The test of the engine: threads write into the surviving objects of a sparse heap, by stores and by every kind of
 * system call that writes into user memory, while the heap is compacted and fragmented again. Each object has a shadow
 * outside of the heap that says what it must hold. No call may fail because of us, and nothing may be lost.
 *
 * MESH_UFFD_TEST_SKIP=kind,kind leaves kinds out; MESH_UFFD_TEST_ONLY=kind,kind does only these.
 */
#include "test.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>

enum {
  OBJECTS = 200000,  /* allocated first */
  KEPT_PERCENT = 15, /* of them */
  SMALL_MAX = 1024,
  BIG = 4096, /* a page, so aligned for O_DIRECT */
  BIG_OBJECTS = 2000,
  WRITERS = 6,
  SHARED = 512, /* objects with a counter that all writers add to */
  SHARED_SIZE = 256,
  FIXED = 512, /* objects that nobody writes and all read */
  GENERATION = 30000,
  INBOX = 4096,
  BUFFER = 8192,
  KINDS_MAX = 64,
};

struct slot {
  unsigned char *p;
  unsigned char *shadow;
  uint32_t size;
  uint32_t room; /* of the shadow */
  bool busy;     /* the kernel has its address */
};

struct item {
  void *p;
  uint64_t seed;
  uint32_t size;
};

struct ring {
  int fd; /* -1: not available */
  unsigned *sq_tail, *sq_array, *cq_head, *cq_tail;
  unsigned sq_mask, cq_mask;
  struct io_uring_sqe *sqes;
  struct io_uring_cqe *cqes;
};

struct writer {
  uint64_t *counts; /* by kind */
  uint64_t *added;  /* to each shared counter */
  struct slot *slots;
  size_t slot_count;
  unsigned char *buffer, *buffer2; /* outside of the heap */
  struct rng rng;
  pthread_t thread;
  int pipe[2];
  int pair[2];  /* stream */
  int dgram[2]; /* named, with credentials */
  int epoll;
  int tcp[2];
  bool tcp_tried;
  aio_context_t aio;
  struct ring ring;
  int ring_pipe[2];
  struct slot *pending; /* of the ring */
  size_t pending_offset, pending_length;
  bool pending_fixed;
  uint64_t operations;
  /* What main hands over. */
  pthread_mutex_t lock;
  size_t inbox_count;
  struct item *inbox;
};

static struct mesh_api api;
static struct writer *writers; /* mapped, like all of the test's own tables */
static unsigned char *shared[SHARED];
static uint64_t shared_start[SHARED];
static unsigned char *fixed[FIXED];
static bool stop;
static int plain_file = -1, direct_file = -1, quiet_file = -1;
static unsigned char *file_content;
enum { FILE_SIZE = 1 << 16 };

static void *map(size_t size) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(p != MAP_FAILED);
  return p;
}

/* ---- slots ---- */

static void slot_verify(const struct slot *s, const char *kind) {
  if (memcmp(s->p, s->shadow, s->size) == 0) return;
  size_t i = 0;
  while (s->p[i] == s->shadow[i] && i < s->size - 1u) i++;
  FAIL("%s: object %p of %u bytes: offset %zu is %#x, must be %#x", kind, (void *)s->p, s->size, i, s->p[i],
       s->shadow[i]);
}

static void random_bytes(struct rng *rng, void *p, size_t n) {
  pattern_fill(p, n, rng_next(rng));
}

/* A place within the object, aligned, or false when it is too small. */
static bool place(struct writer *w, const struct slot *s, size_t n, size_t alignment, size_t *offset) {
  if (s->size < n) return false;
  *offset = rng_below(&w->rng, (s->size - n) / alignment + 1) * alignment;
  return true;
}

static size_t some_length(struct writer *w, const struct slot *s, size_t most) {
  return 1 + rng_below(&w->rng, s->size < most ? s->size : most);
}

#define EXPECT(kind, result, expected)                                                                                 \
  do {                                                                                                                 \
    long result_ = (long)(result);                                                                                     \
    if (result_ != (long)(expected))                                                                                   \
      FAIL("%s returned %ld instead of %ld: %s", kind, result_, (long)(expected),                                      \
           result_ < 0 ? strerror(errno) : "short");                                                                   \
  } while (0)

/* Puts bytes into a pipe or socket, and into the shadow. */
static void send_bytes(struct writer *w, int fd, unsigned char *shadow, size_t n) {
  random_bytes(&w->rng, w->buffer, n);
  EXPECT("write", write(fd, w->buffer, n), n);
  memcpy(shadow, w->buffer, n);
}

/* ---- kinds: each changes the object and its shadow alike; false when it cannot be done to this object or here ---- */

static bool kind_store(struct writer *w, struct slot *s) {
  uint64_t *words = (uint64_t *)(void *)s->p;
  uint64_t *shadow = (uint64_t *)(void *)s->shadow;
  for (size_t i = 0, n = s->size / 8; i < n; i += 1 + rng_below(&w->rng, 4)) {
    uint64_t value = rng_next(&w->rng);
    *(volatile uint64_t *)&words[i] = value;
    shadow[i] = value;
  }
  return true;
}

static bool kind_bytes(struct writer *w, struct slot *s) {
  size_t n = some_length(w, s, SMALL_MAX);
  size_t offset = rng_below(&w->rng, s->size - n + 1);
  int value = (int)rng_below(&w->rng, 256);
  memset(opaque(s->p + offset), value, n);
  memset(s->shadow + offset, value, n);
  return true;
}

static bool kind_atomic(struct writer *w, struct slot *s) {
  size_t offset = rng_below(&w->rng, s->size / 8) * 8;
  uint64_t *word = (uint64_t *)(void *)(s->p + offset);
  uint64_t *shadow = (uint64_t *)(void *)(s->shadow + offset);
  uint64_t value = rng_next(&w->rng);
  uint64_t expected = *shadow;
  switch (rng_below(&w->rng, 4)) {
  case 0:
    CHECK(__atomic_fetch_add(word, value, __ATOMIC_SEQ_CST) == *shadow);
    *shadow += value;
    break;
  case 1:
    CHECK(__atomic_exchange_n(word, value, __ATOMIC_SEQ_CST) == *shadow);
    *shadow = value;
    break;
  case 2:
    CHECK(__atomic_compare_exchange_n(word, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    *shadow = value;
    break;
  default:
    CHECK(__atomic_fetch_xor(word, value, __ATOMIC_SEQ_CST) == *shadow);
    *shadow ^= value;
    break;
  }
  return true;
}

static bool kind_shared(struct writer *w, struct slot *s) {
  (void)s;
  for (int i = 0; i < 8; i++) {
    size_t at = rng_below(&w->rng, SHARED);
    uint64_t value = rng_next(&w->rng);
    size_t word = (at * 13) % (SHARED_SIZE / 8);
    __atomic_fetch_add((uint64_t *)(void *)shared[at] + word, value, __ATOMIC_RELAXED);
    w->added[at] += value;
    at = rng_below(&w->rng, FIXED);
    CHECK_PATTERN(fixed[at], SHARED_SIZE, at);
  }
  return true;
}

static bool kind_replace(struct writer *w, struct slot *s) {
  if (rng_below(&w->rng, 8)) return false;
  slot_verify(s, "replace");
  free(s->p);
  s->p = s->size == BIG ? aligned_alloc(BIG, BIG) : malloc(s->size);
  CHECK(s->p);
  random_bytes(&w->rng, s->p, s->size);
  memcpy(s->shadow, s->p, s->size);
  return true;
}

static bool kind_realloc(struct writer *w, struct slot *s) {
  if (s->size == BIG || rng_below(&w->rng, 8)) return false;
  uint32_t size = 64u << rng_below(&w->rng, 5);
  unsigned char *p = realloc(s->p, size);
  CHECK(p);
  if (size > s->size) {
    random_bytes(&w->rng, p + s->size, size - s->size);
    memcpy(s->shadow + s->size, p + s->size, size - s->size);
  }
  s->p = p;
  s->size = size;
  return true;
}

static bool kind_read(struct writer *w, struct slot *s) {
  size_t n = some_length(w, s, SMALL_MAX);
  size_t offset = rng_below(&w->rng, s->size - n + 1);
  send_bytes(w, w->pipe[1], s->shadow + offset, n);
  EXPECT("read", read(w->pipe[0], s->p + offset, n), n);
  return true;
}

/* The vector is in the object as well. */
static bool kind_readv(struct writer *w, struct slot *s) {
  if (s->size < 128) return false;
  size_t half = s->size / 2 - 32;
  struct iovec iov[3] = {{s->p + 64, half}, {s->p + 64 + half, 3}, {s->p + 67 + half, s->size - 67 - half}};
  memcpy(s->p, iov, sizeof iov);
  memcpy(s->shadow, iov, sizeof iov);
  size_t n = s->size - 64;
  send_bytes(w, w->pipe[1], s->shadow + 64, n);
  EXPECT("readv", readv(w->pipe[0], (struct iovec *)(void *)s->p, 3), n);
  return true;
}

static bool kind_recv(struct writer *w, struct slot *s) {
  size_t n = some_length(w, s, SMALL_MAX);
  size_t offset = rng_below(&w->rng, s->size - n + 1);
  send_bytes(w, w->pair[1], s->shadow + offset, n);
  EXPECT("recv", recv(w->pair[0], s->p + offset, n, MSG_WAITALL), n);
  return true;
}

static bool kind_recvfrom(struct writer *w, struct slot *s) {
  if (s->size < 256) return false;
  size_t n = 64;
  send_bytes(w, w->dgram[1], s->shadow + 192, n);
  socklen_t *length = (socklen_t *)(void *)(s->p + 128);
  *length = sizeof(struct sockaddr_un);
  EXPECT("recvfrom", recvfrom(w->dgram[0], s->p + 192, n, 0, (struct sockaddr *)(void *)s->p, length), n);
  struct sockaddr_un address;
  memset(&address, 0, sizeof address);
  socklen_t expected = sizeof address;
  CHECK(getsockname(w->dgram[1], (struct sockaddr *)&address, &expected) == 0);
  CHECKF(*length == expected && memcmp(s->p, &address, expected) == 0, "recvfrom: wrong address");
  memcpy(s->shadow, s->p, 192);
  return true;
}

/* Header, vector, name, control data and content, all in the object. */
static bool kind_recvmsg(struct writer *w, struct slot *s) {
  if (s->size < 512) return false;
  struct msghdr *message = (struct msghdr *)(void *)s->p;
  struct iovec *iov = (struct iovec *)(void *)(s->p + 64);
  unsigned char *control = s->p + 128;
  unsigned char *name = s->p + 192;
  size_t n = 128;
  memset(s->p, 0, 384);
  send_bytes(w, w->dgram[1], s->shadow + 384, n);
  iov->iov_base = s->p + 384;
  iov->iov_len = n;
  message->msg_name = name;
  message->msg_namelen = sizeof(struct sockaddr_un);
  message->msg_iov = iov;
  message->msg_iovlen = 1;
  message->msg_control = control;
  message->msg_controllen = 64;
  EXPECT("recvmsg", recvmsg(w->dgram[0], message, 0), n);
  CHECKF(message->msg_flags == 0, "recvmsg: flags %#x", (unsigned)message->msg_flags);
  struct cmsghdr *header = CMSG_FIRSTHDR(message);
  CHECKF(header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_CREDENTIALS, "recvmsg: control lost");
  struct ucred credentials;
  memcpy(&credentials, CMSG_DATA(header), sizeof credentials);
  CHECKF(credentials.pid == getpid() && credentials.uid == getuid(), "recvmsg: wrong credentials");
  struct sockaddr_un address;
  memset(&address, 0, sizeof address);
  socklen_t expected = sizeof address;
  CHECK(getsockname(w->dgram[1], (struct sockaddr *)&address, &expected) == 0);
  CHECKF(message->msg_namelen == expected && memcmp(name, &address, expected) == 0, "recvmsg: wrong name");
  memcpy(s->shadow, s->p, 384);
  return true;
}

static bool kind_pread(struct writer *w, struct slot *s) {
  size_t n = some_length(w, s, BIG);
  size_t offset = rng_below(&w->rng, s->size - n + 1);
  size_t at = rng_below(&w->rng, FILE_SIZE - n);
  EXPECT("pread", pread(plain_file, s->p + offset, n, (off_t)at), n);
  memcpy(s->shadow + offset, file_content + at, n);
  return true;
}

static bool kind_preadv(struct writer *w, struct slot *s) {
  size_t n = s->size / 4;
  size_t at = rng_below(&w->rng, FILE_SIZE - s->size);
  struct iovec iov[2] = {{s->p, n}, {s->p + 2 * n, 2 * n}};
  EXPECT("preadv", preadv(plain_file, iov, 2, (off_t)at), 3 * n);
  memcpy(s->shadow, file_content + at, n);
  memcpy(s->shadow + 2 * n, file_content + at + n, 2 * n);
  return true;
}

/* The device, if there is one, writes to the page itself, which is pinned meanwhile. */
static bool kind_direct(struct writer *w, struct slot *s) {
  if (direct_file < 0 || s->size < 512) return false;
  size_t alignment = s->size == BIG ? BIG : 512;
  if ((uintptr_t)s->p % alignment) return false;
  size_t n = s->size / alignment * alignment;
  size_t at = rng_below(&w->rng, (FILE_SIZE - n) / alignment + 1) * alignment;
  ssize_t result = pread(direct_file, s->p, n, (off_t)at);
  if (result < 0 && errno == EINVAL && alignment != BIG) return false; /* larger blocks */
  EXPECT("pread(O_DIRECT)", result, n);
  memcpy(s->shadow, file_content + at, n);
  return true;
}

/* In flight while the thread does something else; the end of it is written into the heap too. */
static bool kind_aio(struct writer *w, struct slot *s) {
  size_t alignment = s->size == BIG ? BIG : 512;
  if (direct_file < 0 || s->size < 512 || (uintptr_t)s->p % alignment) return false;
  if (!w->aio && syscall(SYS_io_setup, 4, &w->aio) < 0) return false;
  size_t n = s->size / alignment * alignment;
  size_t at = rng_below(&w->rng, (FILE_SIZE - n) / alignment + 1) * alignment;
  struct iocb request, *list = &request;
  struct io_event end;
  memset(&request, 0, sizeof request);
  request.aio_lio_opcode = IOCB_CMD_PREAD;
  request.aio_fildes = (uint32_t)direct_file;
  request.aio_buf = (uintptr_t)s->p;
  request.aio_nbytes = n;
  request.aio_offset = (int64_t)at;
  long submitted = syscall(SYS_io_submit, w->aio, 1, &list);
  if (submitted < 0 && errno == EINVAL && alignment != BIG) return false; /* larger blocks */
  EXPECT("io_submit", submitted, 1);
  if (rng_below(&w->rng, 2)) sched_yield();
  EXPECT("io_getevents", syscall(SYS_io_getevents, w->aio, 1, 1, &end, NULL), 1);
  EXPECT("the read", end.res, n);
  memcpy(s->shadow, file_content + at, n);
  return true;
}

/* A connection through the loopback device, for MSG_ZEROCOPY. */
static bool connect_to_itself(struct writer *w) {
  struct sockaddr_in address;
  socklen_t length = sizeof address;
  int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  memset(&address, 0, sizeof address);
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  w->tcp[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  bool fine = listener >= 0 && w->tcp[0] >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0 &&
              listen(listener, 1) == 0 && getsockname(listener, (struct sockaddr *)&address, &length) == 0 &&
              setsockopt(w->tcp[0], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) == 0 &&
              setsockopt(w->tcp[0], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0 &&
              connect(w->tcp[0], (struct sockaddr *)&address, sizeof address) == 0;
  w->tcp[1] = fine ? accept(listener, NULL, NULL) : -1;
  if (listener >= 0) close(listener);
  w->tcp_tried = true;
  return w->tcp[1] >= 0;
}

/* The page is read when it is sent, perhaps later: not changed until then. */
static bool kind_zerocopy(struct writer *w, struct slot *s) {
  if (!w->tcp_tried) connect_to_itself(w);
  if (w->tcp[1] < 0) return false;
  ssize_t sent = send(w->tcp[0], s->p, s->size, MSG_ZEROCOPY);
  if (sent < 0 && errno == ENOBUFS) sent = send(w->tcp[0], s->p, s->size, 0);
  EXPECT("send(MSG_ZEROCOPY)", sent, s->size);
  if (rng_below(&w->rng, 2)) sched_yield();
  EXPECT("recv", recv(w->tcp[1], w->buffer, s->size, MSG_WAITALL), s->size);
  CHECKF(memcmp(w->buffer, s->shadow, s->size) == 0, "MSG_ZEROCOPY from %p sent something else", (void *)s->p);
  char control[256];
  struct msghdr notice;
  memset(&notice, 0, sizeof notice);
  notice.msg_control = control;
  notice.msg_controllen = sizeof control;
  while (recvmsg(w->tcp[0], &notice, MSG_ERRQUEUE | MSG_DONTWAIT) >= 0) notice.msg_controllen = sizeof control;
  return true;
}

static bool kind_write(struct writer *w, struct slot *s) {
  size_t n = some_length(w, s, SMALL_MAX);
  size_t offset = rng_below(&w->rng, s->size - n + 1);
  EXPECT("write", write(w->pipe[1], s->p + offset, n), n);
  EXPECT("read", read(w->pipe[0], w->buffer, n), n);
  CHECKF(memcmp(w->buffer, s->shadow + offset, n) == 0, "write from %p wrote something else", (void *)s->p);
  return true;
}

static bool kind_sendmsg(struct writer *w, struct slot *s) {
  struct iovec iov[2] = {{s->p, s->size / 4}, {s->p + s->size / 2, s->size / 4}};
  struct msghdr message;
  memset(&message, 0, sizeof message);
  message.msg_iov = iov;
  message.msg_iovlen = 2;
  EXPECT("sendmsg", sendmsg(w->pair[1], &message, 0), s->size / 4 * 2);
  EXPECT("recv", recv(w->pair[0], w->buffer, s->size / 4 * 2, MSG_WAITALL), s->size / 4 * 2);
  CHECKF(memcmp(w->buffer, s->shadow, s->size / 4) == 0, "sendmsg from %p sent something else", (void *)s->p);
  CHECKF(memcmp(w->buffer + s->size / 4, s->shadow + s->size / 2, s->size / 4) == 0,
         "sendmsg from %p sent something else", (void *)s->p);
  return true;
}

/* The pipe holds the page, not a copy. */
static bool kind_vmsplice(struct writer *w, struct slot *s) {
  struct iovec iov = {s->p, s->size};
  ssize_t result = vmsplice(w->pipe[1], &iov, 1, 0);
  if (result < 0 && (errno == ENOSYS || errno == EPERM)) return false;
  EXPECT("vmsplice", result, s->size);
  if (rng_below(&w->rng, 2)) sched_yield();
  EXPECT("read", read(w->pipe[0], w->buffer, s->size), s->size);
  CHECKF(memcmp(w->buffer, s->shadow, s->size) == 0, "vmsplice from %p gave something else", (void *)s->p);
  return true;
}

static bool kind_getrandom(struct writer *w, struct slot *s) {
  size_t offset;
  if (!place(w, s, 32, 1, &offset)) return false;
  EXPECT("getrandom", syscall(SYS_getrandom, s->p + offset, 32, 0), 32);
  CHECKF(memcmp(s->p + offset, s->shadow + offset, 32) != 0, "getrandom at %p changed nothing", (void *)s->p);
  memcpy(s->shadow + offset, s->p + offset, 32);
  return true;
}

static bool kind_fionread(struct writer *w, struct slot *s) {
  size_t offset;
  if (!place(w, s, sizeof(int), sizeof(int), &offset)) return false;
  int n = (int)(1 + rng_below(&w->rng, 500));
  EXPECT("write", write(w->pipe[1], w->buffer, (size_t)n), n);
  EXPECT("ioctl(FIONREAD)", ioctl(w->pipe[0], FIONREAD, s->p + offset), 0);
  memcpy(s->shadow + offset, &n, sizeof n);
  EXPECT("read", read(w->pipe[0], w->buffer, (size_t)n), n);
  return true;
}

static bool kind_clock(struct writer *w, struct slot *s) {
  size_t offset;
  if (!place(w, s, sizeof(struct timespec), 8, &offset)) return false;
  struct timespec *t = (struct timespec *)(void *)(s->p + offset);
  uint64_t before = now_ns();
  EXPECT("clock_gettime", syscall(SYS_clock_gettime, CLOCK_MONOTONIC, t), 0);
  uint64_t value = (uint64_t)t->tv_sec * 1000000000u + (uint64_t)t->tv_nsec;
  CHECKF(before <= value && value <= now_ns(), "clock_gettime lost its time");
  memcpy(s->shadow + offset, t, sizeof *t);
  return true;
}

static bool kind_pipe2(struct writer *w, struct slot *s) {
  size_t offset;
  if (!place(w, s, 2 * sizeof(int), sizeof(int), &offset)) return false;
  int *fds = (int *)(void *)(s->p + offset);
  EXPECT("pipe2", pipe2(fds, O_CLOEXEC), 0);
  memcpy(s->shadow + offset, fds, 2 * sizeof(int));
  EXPECT("close", close(fds[0]), 0);
  EXPECT("close", close(fds[1]), 0);
  EXPECT("socketpair", socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  memcpy(s->shadow + offset, fds, 2 * sizeof(int));
  EXPECT("close", close(fds[0]), 0);
  EXPECT("close", close(fds[1]), 0);
  return true;
}

static bool kind_poll(struct writer *w, struct slot *s) {
  size_t offset;
  if (!place(w, s, 3 * sizeof(struct pollfd), 8, &offset)) return false;
  struct pollfd fds[3] = {{w->pipe[0], POLLIN, 0}, {w->pipe[1], POLLOUT, 0}, {-1, POLLIN, 77}};
  memcpy(s->p + offset, fds, sizeof fds);
  bool readable = rng_below(&w->rng, 2);
  if (readable) EXPECT("write", write(w->pipe[1], "x", 1), 1);
  EXPECT("poll", poll((struct pollfd *)(void *)(s->p + offset), 3, 0), readable ? 2 : 1);
  fds[0].revents = readable ? POLLIN : 0;
  fds[1].revents = POLLOUT;
  fds[2].revents = 0;
  memcpy(s->shadow + offset, fds, sizeof fds);
  if (readable) EXPECT("read", read(w->pipe[0], w->buffer, 1), 1);
  return true;
}

static bool kind_select(struct writer *w, struct slot *s) {
  if (s->size < 2 * sizeof(fd_set) + sizeof(struct timeval) || w->pipe[1] >= FD_SETSIZE) return false;
  fd_set *sets = (fd_set *)(void *)s->p;
  struct timeval *timeout = (struct timeval *)(void *)(s->p + 2 * sizeof(fd_set));
  FD_ZERO(&sets[0]);
  FD_ZERO(&sets[1]);
  FD_SET(w->pipe[0], &sets[0]);
  FD_SET(w->pipe[1], &sets[1]);
  memset(timeout, 0, sizeof *timeout);
  memcpy(s->shadow, s->p, 2 * sizeof(fd_set) + sizeof *timeout);
  int highest = w->pipe[0] > w->pipe[1] ? w->pipe[0] : w->pipe[1];
  EXPECT("select", select(highest + 1, &sets[0], &sets[1], NULL, timeout), 1);
  memset(s->shadow, 0, sizeof(fd_set));
  return true;
}

static bool kind_epoll(struct writer *w, struct slot *s) {
  size_t offset;
  if (!place(w, s, 4 * sizeof(struct epoll_event), 8, &offset)) return false;
  EXPECT("write", write(w->pipe[1], "x", 1), 1);
  EXPECT("epoll_wait", epoll_wait(w->epoll, (struct epoll_event *)(void *)(s->p + offset), 4, 0), 1);
  struct epoll_event event;
  memset(&event, 0, sizeof event);
  event.events = EPOLLIN;
  event.data.u64 = (uintptr_t)w;
  memcpy(s->shadow + offset, s->p + offset, sizeof event);
  struct epoll_event got;
  memcpy(&got, s->p + offset, sizeof got);
  CHECKF(got.events == event.events && got.data.u64 == event.data.u64, "epoll_wait lost its event");
  EXPECT("read", read(w->pipe[0], w->buffer, 1), 1);
  return true;
}

/* The kernel adds to a word with page faults disabled, and retries after resolving them. */
static bool kind_futex(struct writer *w, struct slot *s) {
  uint32_t *word = (uint32_t *)(void *)(s->p + rng_below(&w->rng, s->size / 4) * 4);
  uint32_t *other = (uint32_t *)(void *)(s->p + rng_below(&w->rng, s->size / 4) * 4);
  int value = (int)rng_below(&w->rng, 2048);
  EXPECT("futex(FUTEX_WAKE_OP)",
         syscall(SYS_futex, other, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 1, (void *)(uintptr_t)1, word,
                 FUTEX_OP(FUTEX_OP_ADD, value, FUTEX_OP_CMP_EQ, 0)),
         0);
  uint32_t *shadow = (uint32_t *)(void *)(s->shadow + ((unsigned char *)word - s->p));
  *shadow += (uint32_t)value;
  CHECKF(*word == *shadow, "futex(FUTEX_WAKE_OP) is lost");
  struct timespec zero = {0, 0};
  errno = 0;
  long result = syscall(SYS_futex, word, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, *shadow + 1, &zero, NULL, 0);
  CHECKF(result == -1 && errno == EAGAIN, "futex(FUTEX_WAIT) returned %ld: %s", result, strerror(errno));
  return true;
}

static bool kind_process_vm(struct writer *w, struct slot *s) {
  struct iovec local = {w->buffer, s->size};
  struct iovec remote = {s->p, s->size};
  random_bytes(&w->rng, w->buffer, s->size);
  ssize_t result = process_vm_writev(getpid(), &local, 1, &remote, 1, 0);
  if (result < 0 && (errno == ENOSYS || errno == EPERM)) return false;
  EXPECT("process_vm_writev", result, s->size);
  memcpy(s->shadow, w->buffer, s->size);
  local.iov_base = w->buffer2;
  EXPECT("process_vm_readv", process_vm_readv(getpid(), &local, 1, &remote, 1, 0), s->size);
  CHECKF(memcmp(w->buffer2, s->shadow, s->size) == 0, "process_vm_readv read something else");
  return true;
}

/* Locked pages are not for meshing, but the program may lock what it likes, whenever. */
static bool kind_mlock(struct writer *w, struct slot *s) {
  if (rng_below(&w->rng, 4)) return false;
  if (mlock(s->p, s->size) != 0) {
    CHECKF(errno == ENOMEM || errno == EPERM || errno == EAGAIN, "mlock: %s", strerror(errno));
    return false;
  }
  kind_store(w, s);
  if (rng_below(&w->rng, 4) == 0) sched_yield();
  slot_verify(s, "mlock");
  EXPECT("munlock", munlock(s->p, s->size), 0);
  return true;
}

static unsigned long signals;

static void on_signal(int signal_number) {
  (void)signal_number;
  __atomic_fetch_add(&signals, 1, __ATOMIC_RELAXED);
}

/* The kernel builds a signal frame in the heap. */
static bool kind_altstack(struct writer *w, struct slot *s) {
  (void)s;
  enum { SIZE = 32768 };
  if (rng_below(&w->rng, 8)) return false;
  void *decoys[3];
  for (size_t i = 0; i < 3; i++) CHECK((decoys[i] = malloc(SIZE)));
  unsigned char *p = malloc(SIZE);
  CHECK(p);
  stack_t stack;
  memset(&stack, 0, sizeof stack);
  stack.ss_sp = p;
  stack.ss_size = SIZE;
  EXPECT("sigaltstack", sigaltstack(&stack, NULL), 0);
  for (size_t i = 0; i < 3; i++) free(decoys[i]);
  for (int i = 0; i < 10; i++) EXPECT("tgkill", syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1), 0);
  memset(&stack, 0, sizeof stack);
  stack.ss_flags = SS_DISABLE;
  EXPECT("sigaltstack", sigaltstack(&stack, NULL), 0);
  free(p);
  return true;
}

/* Calls that fill a structure: done once into memory outside of the heap and once into the object. */
static long get_fstat(struct writer *w, void *p) {
  return (void)w, fstat(quiet_file, p);
}
static long get_stat(struct writer *w, void *p) {
  return (void)w, stat("/", p);
}
#ifdef STATX_BASIC_STATS
static long get_statx(struct writer *w, void *p) {
  return (void)w, statx(quiet_file, "", AT_EMPTY_PATH, STATX_BASIC_STATS, p);
}
#endif
static long get_uname(struct writer *w, void *p) {
  return (void)w, uname(p);
}
static long get_cwd(struct writer *w, void *p) {
  return (void)w, syscall(SYS_getcwd, p, 256) > 0 ? 0 : -1;
}
static long get_link(struct writer *w, void *p) {
  return (void)w, readlink("/proc/self/exe", p, 256) > 0 ? 0 : -1;
}
static long get_limit(struct writer *w, void *p) {
  return (void)w, syscall(SYS_prlimit64, 0, RLIMIT_NOFILE, NULL, p);
}
static long get_mask(struct writer *w, void *p) {
  return (void)w, syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, p, 8);
}
static long get_action(struct writer *w, void *p) {
  return (void)w, syscall(SYS_rt_sigaction, SIGALRM, NULL, p, 8);
}
static long get_affinity(struct writer *w, void *p) {
  return (void)w, syscall(SYS_sched_getaffinity, 0, 128, p) > 0 ? 0 : -1;
}
static long get_name(struct writer *w, void *p) {
  /* Value and result: the length is in the object, too. */
  socklen_t *length = (socklen_t *)((unsigned char *)p + 120);
  *length = 110;
  return getsockname(w->dgram[0], p, length);
}
static long get_option(struct writer *w, void *p) {
  socklen_t *length = (socklen_t *)((unsigned char *)p + 32);
  *length = 32;
  return getsockopt(w->pair[0], SOL_SOCKET, SO_PEERCRED, p, length);
}
static long get_resuid(struct writer *w, void *p) {
  uid_t *ids = p;
  return (void)w, getresuid(ids, ids + 4, ids + 8);
}

static const struct getter {
  const char *name;
  long (*get)(struct writer *, void *);
  uint32_t size;
} getters[] = {
    {"fstat", get_fstat, sizeof(struct stat)},
    {"stat", get_stat, sizeof(struct stat)},
#ifdef STATX_BASIC_STATS
    {"statx", get_statx, sizeof(struct statx)},
#endif
    {"uname", get_uname, sizeof(struct utsname)},
    {"getcwd", get_cwd, 256},
    {"readlink", get_link, 256},
    {"prlimit", get_limit, 16},
    {"sigprocmask", get_mask, 8},
    {"sigaction", get_action, 64},
    {"getaffinity", get_affinity, 128},
    {"getsockname", get_name, 128},
    {"getsockopt", get_option, 64},
    {"getresuid", get_resuid, 64},
};
enum { GETTERS = sizeof getters / sizeof *getters };

static bool do_getter(struct writer *w, struct slot *s, const struct getter *getter) {
  size_t offset;
  if (!place(w, s, getter->size, 8, &offset)) return false;
  memset(w->buffer, 0x5a, getter->size);
  memset(s->p + offset, 0x5a, getter->size);
  EXPECT(getter->name, getter->get(w, w->buffer), 0);
  EXPECT(getter->name, getter->get(w, s->p + offset), 0);
  memcpy(s->shadow + offset, w->buffer, getter->size);
  slot_verify(s, getter->name);
  return true;
}

/* ---- io_uring ---- */

static void ring_open(struct ring *ring) {
  struct io_uring_params params;
  memset(&params, 0, sizeof params);
  ring->fd = (int)syscall(SYS_io_uring_setup, 8, &params);
  if (ring->fd < 0) return;
  size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(unsigned);
  size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
  int protection = PROT_READ | PROT_WRITE;
  unsigned char *sq = mmap(NULL, sq_size, protection, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
  unsigned char *cq = mmap(NULL, cq_size, protection, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_CQ_RING);
  ring->sqes = mmap(NULL, params.sq_entries * sizeof(struct io_uring_sqe), protection, MAP_SHARED | MAP_POPULATE,
                    ring->fd, (off_t)IORING_OFF_SQES);
  CHECK(sq != MAP_FAILED && cq != MAP_FAILED && ring->sqes != MAP_FAILED);
  ring->sq_tail = (unsigned *)(void *)(sq + params.sq_off.tail);
  ring->sq_mask = *(unsigned *)(void *)(sq + params.sq_off.ring_mask);
  ring->sq_array = (unsigned *)(void *)(sq + params.sq_off.array);
  ring->cq_head = (unsigned *)(void *)(cq + params.cq_off.head);
  ring->cq_tail = (unsigned *)(void *)(cq + params.cq_off.tail);
  ring->cq_mask = *(unsigned *)(void *)(cq + params.cq_off.ring_mask);
  ring->cqes = (struct io_uring_cqe *)(void *)(cq + params.cq_off.cqes);
}

static void ring_submit(struct ring *ring, uint8_t opcode, int fd, void *p, size_t n, uint64_t offset, uint8_t flags) {
  unsigned tail = *ring->sq_tail;
  struct io_uring_sqe *sqe = &ring->sqes[tail & ring->sq_mask];
  memset(sqe, 0, sizeof *sqe);
  sqe->opcode = opcode;
  sqe->flags = flags;
  sqe->fd = fd;
  sqe->addr = (uintptr_t)p;
  sqe->len = (uint32_t)n;
  sqe->off = offset;
  sqe->user_data = (uintptr_t)p;
  ring->sq_array[tail & ring->sq_mask] = tail & ring->sq_mask;
  __atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
  EXPECT("io_uring_enter", syscall(SYS_io_uring_enter, ring->fd, 1, 0, 0, NULL, 0), 1);
}

static int ring_reap(struct ring *ring, const void *p) {
  unsigned head = *ring->cq_head;
  while (__atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) == head) {
    long result = syscall(SYS_io_uring_enter, ring->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    if (result < 0 && errno != EINTR) FAIL("io_uring_enter: %s", strerror(errno));
  }
  struct io_uring_cqe *cqe = &ring->cqes[head & ring->cq_mask];
  CHECK(cqe->user_data == (uintptr_t)p);
  int result = cqe->res;
  __atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
  return result;
}

#define EXPECT_RING(kind, result, expected)                                                                            \
  do {                                                                                                                 \
    int ring_result_ = (result);                                                                                       \
    if (ring_result_ != (int)(expected))                                                                               \
      FAIL("%s returned %d instead of %d: %s", kind, ring_result_, (int)(expected),                                    \
           ring_result_ < 0 ? strerror(-ring_result_) : "short");                                                      \
  } while (0)

/* At once, or by a kernel thread. */
static bool kind_uring(struct writer *w, struct slot *s) {
  if (w->ring.fd < 0 || w->pending) return false;
  size_t n = some_length(w, s, SMALL_MAX);
  size_t offset = rng_below(&w->rng, s->size - n + 1);
  uint8_t flags = rng_below(&w->rng, 3) ? 0 : IOSQE_ASYNC;
  if (rng_below(&w->rng, 2)) {
    send_bytes(w, w->ring_pipe[1], s->shadow + offset, n);
    ring_submit(&w->ring, IORING_OP_READ, w->ring_pipe[0], s->p + offset, n, 0, flags);
  } else {
    size_t at = rng_below(&w->rng, FILE_SIZE - n);
    memcpy(s->shadow + offset, file_content + at, n);
    ring_submit(&w->ring, IORING_OP_READ, plain_file, s->p + offset, n, at, flags);
  }
  EXPECT_RING("IORING_OP_READ", ring_reap(&w->ring, s->p + offset), n);
  return true;
}

static void pending_finish(struct writer *w) {
  struct slot *s = w->pending;
  unsigned char *p = s->p + w->pending_offset;
  size_t n = w->pending_length;
  if (w->pending_fixed) {
    send_bytes(w, w->ring_pipe[1], s->shadow + w->pending_offset, n);
    ring_submit(&w->ring, IORING_OP_READ_FIXED, w->ring_pipe[0], p, n, 0, 0);
    EXPECT_RING("IORING_OP_READ_FIXED", ring_reap(&w->ring, p), n);
    EXPECT("IORING_UNREGISTER_BUFFERS", syscall(SYS_io_uring_register, w->ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0),
           0);
  } else {
    send_bytes(w, w->ring_pipe[1], s->shadow + w->pending_offset, n);
    EXPECT_RING("IORING_OP_READ (pending)", ring_reap(&w->ring, p), n);
  }
  slot_verify(s, w->pending_fixed ? "uring_fixed" : "uring_pending");
  s->busy = false;
  w->pending = NULL;
}

/* A read that waits for its data, over many other operations and passes. */
static bool kind_uring_pending(struct writer *w, struct slot *s) {
  if (w->ring.fd < 0) return false;
  if (w->pending) {
    if (rng_below(&w->rng, 20)) return false;
    pending_finish(w);
    return true;
  }
  w->pending = s;
  w->pending_fixed = false;
  w->pending_length = some_length(w, s, SMALL_MAX);
  w->pending_offset = rng_below(&w->rng, s->size - w->pending_length + 1);
  s->busy = true;
  ring_submit(&w->ring, IORING_OP_READ, w->ring_pipe[0], s->p + w->pending_offset, w->pending_length, 0, 0);
  return true;
}

/* A registered buffer: its page is pinned for as long. */
static bool kind_uring_fixed(struct writer *w, struct slot *s) {
  static bool unavailable;
  if (w->ring.fd < 0 || w->pending || __atomic_load_n(&unavailable, __ATOMIC_RELAXED)) return false;
  if (rng_below(&w->rng, 8)) return false;
  struct iovec iov = {s->p, s->size};
  if (syscall(SYS_io_uring_register, w->ring.fd, IORING_REGISTER_BUFFERS, &iov, 1) != 0) {
    CHECKF(errno == ENOMEM || errno == EPERM, "IORING_REGISTER_BUFFERS: %s", strerror(errno));
    __atomic_store_n(&unavailable, true, __ATOMIC_RELAXED);
    return false;
  }
  w->pending = s;
  w->pending_fixed = true;
  w->pending_length = some_length(w, s, SMALL_MAX);
  w->pending_offset = rng_below(&w->rng, s->size - w->pending_length + 1);
  s->busy = true;
  return true;
}

/* ---- the list of kinds ---- */

struct kind {
  const char *name;
  bool (*run)(struct writer *, struct slot *);
};

static const struct kind kinds[] = {
    {"store", kind_store},
    {"bytes", kind_bytes},
    {"atomic", kind_atomic},
    {"shared", kind_shared},
    {"replace", kind_replace},
    {"realloc", kind_realloc},
    {"read", kind_read},
    {"readv", kind_readv},
    {"recv", kind_recv},
    {"recvfrom", kind_recvfrom},
    {"recvmsg", kind_recvmsg},
    {"pread", kind_pread},
    {"preadv", kind_preadv},
    {"direct", kind_direct},
    {"aio", kind_aio},
    {"write", kind_write},
    {"zerocopy", kind_zerocopy},
    {"sendmsg", kind_sendmsg},
    {"vmsplice", kind_vmsplice},
    {"getrandom", kind_getrandom},
    {"fionread", kind_fionread},
    {"clock", kind_clock},
    {"pipe2", kind_pipe2},
    {"poll", kind_poll},
    {"select", kind_select},
    {"epoll", kind_epoll},
    {"futex", kind_futex},
    {"process_vm", kind_process_vm},
    {"mlock", kind_mlock},
    {"altstack", kind_altstack},
    {"uring", kind_uring},
    {"uring_pending", kind_uring_pending},
    {"uring_fixed", kind_uring_fixed},
};
enum { KINDS = sizeof kinds / sizeof *kinds, ALL_KINDS = KINDS + GETTERS, NO_SYSTEM_CALL = 6 };
_Static_assert((int)ALL_KINDS <= (int)KINDS_MAX, "a writer counts so many");

static unsigned enabled[ALL_KINDS]; /* indices of the kinds to run */
static size_t enabled_count;

static const char *kind_name(size_t i) {
  return i < KINDS ? kinds[i].name : getters[i - KINDS].name;
}

static bool listed(const char *list, const char *name) {
  size_t length = strlen(name);
  for (const char *p = list; p && (p = strstr(p, name)); p += length)
    if ((p == list || p[-1] == ',') && (p[length] == 0 || p[length] == ',')) return true;
  return false;
}

static void choose_kinds(void) {
  const char *skip = getenv("MESH_UFFD_TEST_SKIP");
  const char *only = getenv("MESH_UFFD_TEST_ONLY");
  for (unsigned i = 0; i < ALL_KINDS; i++) {
    if (only && *only && !listed(only, kind_name(i))) continue;
    if (skip && *skip && listed(skip, kind_name(i))) continue;
    enabled[enabled_count++] = i;
  }
  CHECKF(enabled_count > 0, "no kinds are left to run");
}

/* ---- writers ---- */

static void take_from_inbox(struct writer *w) {
  CHECK(pthread_mutex_lock(&w->lock) == 0);
  bool any = w->inbox_count > 0;
  struct item item;
  memset(&item, 0, sizeof item);
  if (any) item = w->inbox[--w->inbox_count];
  CHECK(pthread_mutex_unlock(&w->lock) == 0);
  if (!any) return;
  CHECK_PATTERN(item.p, item.size, item.seed);
  struct slot *s = &w->slots[rng_below(&w->rng, w->slot_count)];
  if (s->busy || s->room < item.size || s->size == BIG) {
    free(item.p);
    return;
  }
  slot_verify(s, "handed over");
  free(s->p);
  s->p = item.p;
  s->size = item.size;
  memcpy(s->shadow, s->p, s->size);
}

static void *writer_run(void *argument) {
  struct writer *w = argument;
  while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE)) {
    struct slot *s = &w->slots[rng_below(&w->rng, w->slot_count)];
    if (s->busy) continue;
    size_t kind = enabled[rng_below(&w->rng, enabled_count)];
    const char *name = kind_name(kind);
    /* Half of the time the first touch is that of the call. */
    if (rng_below(&w->rng, 2)) slot_verify(s, name);
    bool done = kind < KINDS ? kinds[kind].run(w, s) : do_getter(w, s, &getters[kind - KINDS]);
    if (done) w->counts[kind]++;
    if (!s->busy && rng_below(&w->rng, 2)) slot_verify(s, name);
    if (w->operations++ % 4 == 0) take_from_inbox(w);
  }
  if (w->pending) pending_finish(w);
  return NULL;
}

static void writer_prepare(struct writer *w) {
  CHECK(pthread_mutex_init(&w->lock, NULL) == 0);
  w->counts = map(KINDS_MAX * sizeof *w->counts);
  w->added = map(SHARED * sizeof *w->added);
  w->inbox = map(INBOX * sizeof *w->inbox);
  w->buffer = map(2 * BUFFER);
  w->buffer2 = w->buffer + BUFFER;
  CHECK(pipe2(w->pipe, O_CLOEXEC) == 0);
  CHECK(pipe2(w->ring_pipe, O_CLOEXEC) == 0);
  CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, w->pair) == 0);
  int on = 1;
  for (int i = 0; i < 2; i++) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    w->dgram[i] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(w->dgram[i] >= 0);
    CHECK(bind(w->dgram[i], (struct sockaddr *)&address, sizeof(sa_family_t)) == 0); /* the kernel names it */
    CHECK(setsockopt(w->dgram[i], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
  }
  struct sockaddr_un address;
  socklen_t length = sizeof address;
  CHECK(getsockname(w->dgram[0], (struct sockaddr *)&address, &length) == 0);
  CHECK(connect(w->dgram[1], (struct sockaddr *)&address, length) == 0);
  w->epoll = epoll_create1(EPOLL_CLOEXEC);
  CHECK(w->epoll >= 0);
  struct epoll_event event;
  memset(&event, 0, sizeof event);
  event.events = EPOLLIN;
  event.data.u64 = (uintptr_t)w;
  CHECK(epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->pipe[0], &event) == 0);
  ring_open(&w->ring);
}

/* ---- the heap ---- */

static void make_files(struct rng *rng) {
  file_content = map(FILE_SIZE);
  pattern_fill(file_content, FILE_SIZE, rng_next(rng));
  quiet_file = memfd_create("quiet", MFD_CLOEXEC);
  CHECK(quiet_file >= 0 && ftruncate(quiet_file, 12345) == 0);
  const char *directory = getenv("TMPDIR");
  const char *const directories[] = {directory && *directory ? directory : ".", ".", "/var/tmp", "/tmp"};
  for (size_t i = 0; i < 4 && direct_file < 0; i++) {
    char name[4200];
    snprintf(name, sizeof name, "%.4000s/racing_writers.%d.tmp", directories[i], (int)getpid());
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) continue;
    if (write(fd, file_content, FILE_SIZE) == FILE_SIZE && fsync(fd) == 0) {
      direct_file = open(name, O_RDONLY | O_DIRECT | O_CLOEXEC);
      if (plain_file < 0) plain_file = dup(fd);
    }
    CHECK(unlink(name) == 0);
    close(fd);
  }
  if (plain_file < 0) {
    plain_file = memfd_create("plain", MFD_CLOEXEC);
    CHECK(plain_file >= 0 && write(plain_file, file_content, FILE_SIZE) == FILE_SIZE);
  }
  if (direct_file < 0) printf("skipped part: no directory for a file with O_DIRECT\n");
}

static size_t random_size(struct rng *rng) {
  return (size_t)64 << rng_below(rng, 5);
}

/* Fills slots of all writers with the survivors of many objects. */
static void build(struct rng *rng) {
  void **p = map(OBJECTS * sizeof *p);
  uint16_t *size = map(OBJECTS * sizeof *size);
  for (size_t i = 0; i < OBJECTS; i++) {
    size[i] = (uint16_t)random_size(rng);
    p[i] = malloc(size[i]);
    CHECK(p[i]);
    memset(p[i], 0x11, size[i]);
  }
  size_t room = (OBJECTS + BIG_OBJECTS) / WRITERS;
  for (size_t t = 0; t < WRITERS; t++) {
    struct writer *w = &writers[t];
    w->slots = map(room * sizeof *w->slots);
    unsigned char *shadows = map(room * SMALL_MAX);
    for (size_t i = 0; i < room; i++) {
      w->slots[i].shadow = shadows + i * SMALL_MAX;
      w->slots[i].room = SMALL_MAX;
    }
  }
  size_t shared_count = 0, fixed_count = 0, next = 0;
  for (size_t i = 0; i < OBJECTS; i++) {
    if (rng_below(rng, 100) >= KEPT_PERCENT) {
      free(p[i]);
      continue;
    }
    if (size[i] == SHARED_SIZE && shared_count < SHARED && rng_below(rng, 8) == 0) {
      shared[shared_count] = p[i];
      size_t word = (shared_count * 13) % (SHARED_SIZE / 8);
      shared_start[shared_count] = rng_next(rng);
      memcpy(shared[shared_count] + word * 8, &shared_start[shared_count], 8);
      shared_count++;
      continue;
    }
    if (size[i] == SHARED_SIZE && fixed_count < FIXED && rng_below(rng, 8) == 0) {
      fixed[fixed_count] = p[i];
      pattern_fill(p[i], SHARED_SIZE, fixed_count++);
      continue;
    }
    struct writer *w = &writers[next++ % WRITERS];
    if (w->slot_count >= room - BIG_OBJECTS) {
      free(p[i]);
      continue;
    }
    struct slot *s = &w->slots[w->slot_count++];
    s->p = p[i];
    s->size = size[i];
    random_bytes(rng, s->p, s->size);
    memcpy(s->shadow, s->p, s->size);
  }
  CHECK(shared_count == SHARED && fixed_count == FIXED);
  for (size_t i = 0; i < BIG_OBJECTS; i++) CHECK((p[i] = aligned_alloc(BIG, BIG)));
  for (size_t i = 0; i < BIG_OBJECTS; i++) {
    if (rng_below(rng, 100) >= KEPT_PERCENT) {
      free(p[i]);
      continue;
    }
    struct writer *w = &writers[next++ % WRITERS];
    struct slot *s = &w->slots[w->slot_count++];
    s->p = p[i];
    s->shadow = map(BIG);
    s->size = BIG;
    s->room = BIG;
    random_bytes(rng, s->p, BIG);
    memcpy(s->shadow, s->p, BIG);
  }
  CHECK(munmap(p, OBJECTS * sizeof *p) == 0);
  CHECK(munmap(size, OBJECTS * sizeof *size) == 0);
}

/* More objects, most of them freed again; the survivors go to the writers, in place of what they have. */
static void fragment(struct rng *rng, struct item *items) {
  for (size_t i = 0; i < GENERATION; i++) {
    items[i].size = (uint32_t)random_size(rng);
    items[i].seed = rng_next(rng);
    items[i].p = malloc(items[i].size);
    CHECK(items[i].p);
    pattern_fill(items[i].p, items[i].size, items[i].seed);
  }
  for (size_t i = 0; i < GENERATION; i++) {
    CHECK_PATTERN(items[i].p, items[i].size, items[i].seed);
    bool handed = false;
    if (rng_below(rng, 100) < KEPT_PERCENT) {
      struct writer *w = &writers[rng_below(rng, WRITERS)];
      CHECK(pthread_mutex_lock(&w->lock) == 0);
      if (w->inbox_count < INBOX) {
        w->inbox[w->inbox_count++] = items[i];
        handed = true;
      }
      CHECK(pthread_mutex_unlock(&w->lock) == 0);
    }
    if (!handed) free(items[i].p);
  }
}

int main(void) {
  uint64_t seed = test_begin();
  test_watchdog(test_is_long() ? 900 : 100);
  api = mesh_api_find();
  test_needs_library(&api);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK | SA_RESTART;
  CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
  choose_kinds();
  struct rng rng = rng_from(seed, 1000);
  writers = map(WRITERS * sizeof *writers);
  struct item *items = map(GENERATION * sizeof *items);
  make_files(&rng);
  for (size_t t = 0; t < WRITERS; t++) {
    writers[t].rng = rng_from(seed, t);
    writer_prepare(&writers[t]);
  }
  build(&rng);

  size_t given_back = mesh_api_compact(&api);
  struct mesh_uffd_stats stats = mesh_api_stats(&api);
  if (api.present) printf("tier: %s\n", tier_name(stats.tier));
  printf("first compaction gave back %zu bytes\n", given_back);
  for (size_t t = 0; t < WRITERS; t++)
    for (size_t i = 0; i < writers[t].slot_count; i++) slot_verify(&writers[t].slots[i], "first compaction");
  if (api.present) test_expect_tier(stats.tier);

  for (size_t t = 0; t < WRITERS; t++) {
    int error = pthread_create(&writers[t].thread, NULL, writer_run, &writers[t]);
    CHECKF(error == 0, "pthread_create: %s", strerror(error));
  }
  uint64_t start = now_ns();
  uint64_t end = start + UINT64_C(1000000000) * (test_is_long() ? 120 : 6);
  uint64_t latest = end + UINT64_C(1000000000) * 20; /* for a first fault, where there must be one */
  uint64_t compactions = 0, generations = 0;
  for (;;) {
    uint64_t now = now_ns();
    if (now >= end) {
      stats = mesh_api_stats(&api);
      if (!tier_is_full(stats.tier) || (stats.faults && stats.meshes && stats.passes) || now >= latest) break;
    }
    if (compactions % 3 == 0) {
      fragment(&rng, items);
      generations++;
    }
    mesh_api_compact(&api);
    compactions++;
    if (!api.present) sleep_ns(1000000);
  }
  double seconds = (double)(now_ns() - start) / 1e9;
  __atomic_store_n(&stop, true, __ATOMIC_RELEASE);
  for (size_t t = 0; t < WRITERS; t++) CHECK(pthread_join(writers[t].thread, NULL) == 0);

  uint64_t operations = 0;
  for (size_t t = 0; t < WRITERS; t++) {
    struct writer *w = &writers[t];
    operations += w->operations;
    for (size_t i = 0; i < w->slot_count; i++) slot_verify(&w->slots[i], "the end");
    for (size_t i = 0; i < w->inbox_count; i++) CHECK_PATTERN(w->inbox[i].p, w->inbox[i].size, w->inbox[i].seed);
  }
  for (size_t i = 0; i < SHARED; i++) {
    uint64_t expected = shared_start[i], value;
    for (size_t t = 0; t < WRITERS; t++) expected += writers[t].added[i];
    memcpy(&value, shared[i] + (i * 13) % (SHARED_SIZE / 8) * 8, sizeof value);
    CHECKF(value == expected, "shared counter %zu at %p lost an addition", i, (void *)shared[i]);
  }
  for (size_t i = 0; i < FIXED; i++) CHECK_PATTERN(fixed[i], SHARED_SIZE, i);

  size_t system_calls = 0;
  printf("%.1f s, %llu operations, %llu compactions, %llu generations, by kind:", seconds,
         (unsigned long long)operations, (unsigned long long)compactions, (unsigned long long)generations);
  for (size_t i = 0; i < ALL_KINDS; i++) {
    uint64_t count = 0;
    for (size_t t = 0; t < WRITERS; t++) count += writers[t].counts[i];
    printf(" %s=%llu", kind_name(i), (unsigned long long)count);
    if (i >= NO_SYSTEM_CALL && count) system_calls++;
  }
  printf("\n");
  if (enabled_count == ALL_KINDS) CHECKF(system_calls >= 12, "only %zu kinds of system calls ran", system_calls);

  stats = mesh_api_stats(&api);
  if (api.present) {
    print_stats(&stats);
    test_expect_tier(stats.tier);
    if (tier_is_full(stats.tier)) {
      CHECKF(stats.meshes > 0, "nothing was meshed");
      CHECKF(stats.passes > 0, "no run was ever closed");
      struct timespec used;
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
      /* Where others have the processors, who closes a run and who writes hardly ever run at the same time. */
      bool busy = (double)used.tv_sec < 1.2 * seconds;
      CHECKF(stats.faults > 0 || busy || test_slow() > 1, "no writer ever met a closed run");
    }
  }
  for (size_t t = 0; t < WRITERS; t++) {
    for (size_t i = 0; i < writers[t].slot_count; i++) free(writers[t].slots[i].p);
    for (size_t i = 0; i < writers[t].inbox_count; i++) free(writers[t].inbox[i].p);
  }
  for (size_t i = 0; i < SHARED; i++) free(shared[i]);
  for (size_t i = 0; i < FIXED; i++) free(fixed[i]);
  mesh_api_compact(&api);
  printf("passed\n");
  return 0;
}
