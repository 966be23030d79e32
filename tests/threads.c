/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that come and go, free each other's blocks, and allocate when they should be gone already. */
#include "test.h"

#include <limits.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

static struct mesh_api api;
static uint64_t test_seed;

/* ---- blocks that know what they hold ---- */

struct block {
  uint64_t seed;
  uint64_t size; /* of the whole block */
};

static void *block_new(struct rng *rng) {
  size_t size = sizeof(struct block) + rng_size(rng, 10);
  if (rng_below(rng, 200) == 0) size += rng_below(rng, 60000);
  if (rng_below(rng, 5000) == 0) size += rng_below(rng, 2000000);
  struct block *b = rng_below(rng, 4) ? malloc(size) : calloc(1, size);
  CHECK(b);
  b->seed = rng_next(rng);
  b->size = size ^ b->seed;
  pattern_fill(b + 1, size - sizeof *b, b->seed);
  return b;
}

static void block_check(const void *p) {
  const struct block *b = p;
  size_t size = (size_t)(b->size ^ b->seed);
  CHECKF(size >= sizeof *b && size < 4000000, "header of %p", p);
  CHECK_PATTERN(b + 1, size - sizeof *b, b->seed);
}

static void block_free(void *p) {
  if (!p) return;
  block_check(p);
  memset(p, 0xee, sizeof(struct block));
  free(p);
}

static void *block_resize(void *p, struct rng *rng) {
  struct block *b = p;
  block_check(b);
  uint64_t seed = b->seed;
  size_t size = sizeof *b + rng_size(rng, 11);
  b = realloc(b, size);
  CHECK(b);
  b->size = size ^ seed;
  pattern_fill(b + 1, size - sizeof *b, seed);
  return b;
}

static void start(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
  int error = pthread_create(thread, attributes, run, argument);
  CHECKF(error == 0, "pthread_create: %s", strerror(error));
}

/* ---- before and after main ---- */

static void *constructed;

__attribute__((constructor)) static void construct(void) {
  struct rng rng = rng_from(1, 1);
  constructed = block_new(&rng);
  for (int i = 0; i < 1000; i++) block_free(block_new(&rng));
}

__attribute__((destructor)) static void destruct(void) {
  struct rng rng = rng_from(1, 2);
  for (int i = 0; i < 1000; i++) block_free(block_new(&rng));
  block_free(constructed);
}

static void at_exit(void) {
  struct rng rng = rng_from(1, 3);
  for (int i = 0; i < 1000; i++) block_free(block_new(&rng));
}

/* ---- thread-local destructors ---- */

static pthread_key_t early_key, late_key;
static unsigned long key_destructor_runs, cleanup_runs;

struct cleanup {
  struct rng rng;
  int iteration;
  void *blocks[20];
};

static struct cleanup *cleanup_new(uint64_t stream) {
  struct cleanup *c = malloc(sizeof *c);
  CHECK(c);
  c->rng = rng_from(test_seed, stream);
  c->iteration = 0;
  for (size_t i = 0; i < 20; i++) c->blocks[i] = block_new(&c->rng);
  return c;
}

static void cleanup_churn(struct cleanup *c) {
  for (size_t i = 0; i < 20; i++) {
    if (i % 2) {
      c->blocks[i] = block_resize(c->blocks[i], &c->rng);
    } else {
      block_free(c->blocks[i]);
      c->blocks[i] = block_new(&c->rng);
    }
  }
}

static void cleanup_end(struct cleanup *c) {
  for (size_t i = 0; i < 20; i++) block_free(c->blocks[i]);
  free(c);
}

/* Runs in as many of the rounds of destructors as there are, so also after the allocator's own. */
static void key_destructor(pthread_key_t key, struct cleanup *c) {
  __atomic_fetch_add(&key_destructor_runs, 1, __ATOMIC_RELAXED);
  cleanup_churn(c);
  if (++c->iteration < PTHREAD_DESTRUCTOR_ITERATIONS)
    CHECK(pthread_setspecific(key, c) == 0);
  else
    cleanup_end(c);
}

static void early_destructor(void *p) {
  key_destructor(early_key, p);
}
static void late_destructor(void *p) {
  key_destructor(late_key, p);
}

static void thread_atexit(void *p) {
  __atomic_fetch_add(&cleanup_runs, 1, __ATOMIC_RELAXED);
  cleanup_churn(p);
  cleanup_end(p);
}

#ifdef __GLIBC__
extern int __cxa_thread_atexit_impl(void (*)(void *), void *, void *);
extern void *__dso_handle;

static int at_thread_exit(void *p) {
  return __cxa_thread_atexit_impl(thread_atexit, p, &__dso_handle);
}
#else
static pthread_key_t exit_key;

static void make_exit_key(void) {
  CHECK(pthread_key_create(&exit_key, thread_atexit) == 0);
}

static int at_thread_exit(void *p) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_exit_key);
  return pthread_setspecific(exit_key, p);
}
#endif

static _Thread_local void *thread_block;

/* ---- waves of threads ---- */

enum { BOX = 4096 };
static pthread_mutex_t box_lock = PTHREAD_MUTEX_INITIALIZER;
static void *box[BOX];
static unsigned long finished, wave_started;

static void *wave_thread(void *argument) {
  uint64_t stream = (uintptr_t)argument;
  struct rng rng = rng_from(test_seed, stream);
  void *mine[200];
  size_t n = 20 + rng_below(&rng, 180);
  if (stream % 3 == 0) CHECK(pthread_setspecific(early_key, cleanup_new(stream * 8 + 1)) == 0);
  if (stream % 3 == 1) CHECK(pthread_setspecific(late_key, cleanup_new(stream * 8 + 2)) == 0);
  if (stream % 2) CHECK(at_thread_exit(cleanup_new(stream * 8 + 3)) == 0);
  thread_block = block_new(&rng);
  for (size_t i = 0; i < n; i++) mine[i] = block_new(&rng);
  for (int round = 0; round < 3; round++) {
    /* What this thread takes out was made by one that may be gone. */
    for (size_t i = 0; i < n; i++) {
      size_t at = rng_below(&rng, BOX);
      CHECK(pthread_mutex_lock(&box_lock) == 0);
      void *other = box[at];
      box[at] = mine[i];
      CHECK(pthread_mutex_unlock(&box_lock) == 0);
      if (other && rng_below(&rng, 3)) {
        mine[i] = block_resize(other, &rng);
      } else {
        block_free(other);
        mine[i] = block_new(&rng);
      }
    }
  }
  for (size_t i = 0; i < n; i++) block_free(mine[i]);
  block_free(thread_block);
  __atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
  return NULL;
}

static void waves(void) {
  enum { WAVE = 50 };
  size_t total = test_is_long() ? 40000 : 2000;
  pthread_attr_t detached;
  CHECK(pthread_attr_init(&detached) == 0);
  CHECK(pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED) == 0);
  for (size_t begun = 0; begun < total; begun += WAVE) {
    pthread_t threads[WAVE];
    for (size_t i = 0; i < WAVE; i++)
      start(&threads[i], i % 5 == 4 ? &detached : NULL, wave_thread, (void *)(uintptr_t)(begun + i + 100));
    wave_started += WAVE;
    for (size_t i = 0; i < WAVE; i++) {
      if (i % 5 != 4) CHECK(pthread_join(threads[i], NULL) == 0);
    }
    if (begun % 500 == 0) mesh_api_compact(&api);
  }
  while (__atomic_load_n(&finished, __ATOMIC_ACQUIRE) != wave_started) sleep_ns(1000000);
  CHECK(pthread_attr_destroy(&detached) == 0);
  for (size_t i = 0; i < BOX; i++) {
    block_free(box[i]);
    box[i] = NULL;
  }
  CHECK(__atomic_load_n(&key_destructor_runs, __ATOMIC_RELAXED) > 0);
  CHECK(__atomic_load_n(&cleanup_runs, __ATOMIC_RELAXED) > 0);
  printf("ok %zu threads, %lu runs of key destructors, %lu of thread_local ones\n", total, key_destructor_runs,
         cleanup_runs);
}

/* ---- producers and consumers ---- */

enum { QUEUE = 512, PRODUCERS = 4, CONSUMERS = 4 };
static struct {
  pthread_mutex_t lock;
  pthread_cond_t not_empty, not_full;
  void *items[QUEUE];
  size_t head, count;
  int producers;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER,
           .not_empty = PTHREAD_COND_INITIALIZER,
           .not_full = PTHREAD_COND_INITIALIZER,
           .producers = PRODUCERS};

static size_t items_each(void) {
  return test_is_long() ? 5000000 : 60000;
}

static void *producer(void *argument) {
  struct rng rng = rng_from(test_seed, (uintptr_t)argument);
  for (size_t i = 0, n = items_each(); i < n;) {
    void *batch[16];
    size_t m = n - i < 16 ? n - i : 16;
    for (size_t j = 0; j < m; j++) batch[j] = block_new(&rng);
    CHECK(pthread_mutex_lock(&queue.lock) == 0);
    for (size_t j = 0; j < m; j++) {
      while (queue.count == QUEUE) CHECK(pthread_cond_wait(&queue.not_full, &queue.lock) == 0);
      queue.items[(queue.head + queue.count++) % QUEUE] = batch[j];
      CHECK(pthread_cond_signal(&queue.not_empty) == 0);
    }
    CHECK(pthread_mutex_unlock(&queue.lock) == 0);
    i += m;
  }
  CHECK(pthread_mutex_lock(&queue.lock) == 0);
  queue.producers--;
  CHECK(pthread_cond_broadcast(&queue.not_empty) == 0);
  CHECK(pthread_mutex_unlock(&queue.lock) == 0);
  return NULL;
}

static void *consumer(void *argument) {
  struct rng rng = rng_from(test_seed, (uintptr_t)argument);
  uintptr_t consumed = 0;
  for (;;) {
    void *batch[16];
    size_t m = 0;
    CHECK(pthread_mutex_lock(&queue.lock) == 0);
    while (!queue.count && queue.producers) CHECK(pthread_cond_wait(&queue.not_empty, &queue.lock) == 0);
    for (; m < 16 && queue.count; m++, queue.count--) {
      batch[m] = queue.items[queue.head];
      queue.head = (queue.head + 1) % QUEUE;
    }
    CHECK(pthread_cond_broadcast(&queue.not_full) == 0);
    CHECK(pthread_mutex_unlock(&queue.lock) == 0);
    if (!m) return (void *)consumed;
    consumed += m;
    for (size_t j = 0; j < m; j++) {
      if (rng_below(&rng, 10) == 0) batch[j] = block_resize(batch[j], &rng);
      block_free(batch[j]);
    }
  }
}

static void producers_and_consumers(void) {
  pthread_t producers[PRODUCERS], consumers[CONSUMERS];
  for (size_t i = 0; i < PRODUCERS; i++) start(&producers[i], NULL, producer, (void *)(uintptr_t)(1000000 + i));
  for (size_t i = 0; i < CONSUMERS; i++) start(&consumers[i], NULL, consumer, (void *)(uintptr_t)(2000000 + i));
  size_t consumed = 0;
  for (size_t i = 0; i < PRODUCERS; i++) CHECK(pthread_join(producers[i], NULL) == 0);
  for (size_t i = 0; i < CONSUMERS; i++) {
    void *result;
    CHECK(pthread_join(consumers[i], &result) == 0);
    consumed += (uintptr_t)result;
  }
  CHECK(consumed == PRODUCERS * items_each());
  printf("ok %zu blocks freed by another thread than their owner\n", consumed);
}

/* ---- blocks that outlive their owner ---- */

enum { ORPHANS = 2000, PARENTS = 16 };

static void *leave_behind(void *argument) {
  void **out = argument;
  struct rng rng = rng_from(test_seed, (uintptr_t)argument);
  for (size_t i = 0; i < ORPHANS; i++) out[i] = block_new(&rng);
  return NULL;
}

static void *adopt(void *argument) {
  void **in = argument;
  for (size_t i = 0; i < ORPHANS; i++) block_free(in[i]);
  return NULL;
}

static void owners_exit(void) {
  static void *orphans[PARENTS][ORPHANS];
  pthread_t threads[PARENTS];
  struct rng rng = rng_from(test_seed, 77);
  for (int round = 0; round < (test_is_long() ? 100 : 4); round++) {
    for (size_t i = 0; i < PARENTS; i++) start(&threads[i], NULL, leave_behind, orphans[i]);
    for (size_t i = 0; i < PARENTS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    shuffle_pointers(&rng, &orphans[0][0], (size_t)PARENTS * ORPHANS);
    mesh_api_compact(&api);
    if (round % 2) {
      for (size_t i = 0; i < PARENTS; i++) start(&threads[i], NULL, adopt, orphans[i]);
      for (size_t i = 0; i < PARENTS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    } else {
      for (size_t i = 0; i < PARENTS; i++) adopt(orphans[i]);
    }
  }
  printf("ok frees after the owner's exit\n");
}

/* ---- tiny stacks ---- */

static void *tiny_thread(void *argument) {
  struct rng rng = rng_from(test_seed, (uintptr_t)argument);
  void *blocks[32];
  for (int round = 0; round < 50; round++) {
    for (size_t i = 0; i < 32; i++) blocks[i] = block_new(&rng);
    for (size_t i = 0; i < 32; i++) blocks[i] = block_resize(blocks[i], &rng);
    for (size_t i = 0; i < 32; i++) block_free(blocks[i]);
  }
  if ((uintptr_t)argument % 8 == 0) free(opaque(aligned_alloc(64, 3200000)));
  return NULL;
}

static void tiny_stacks(void) {
  enum { N = 64 };
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  size_t size = ((size_t)PTHREAD_STACK_MIN + page - 1) / page * page;
  pthread_attr_t attributes;
  CHECK(pthread_attr_init(&attributes) == 0);
  CHECK(pthread_attr_setguardsize(&attributes, page) == 0);
  pthread_t threads[N];
  for (;;) {
    CHECK(pthread_attr_setstacksize(&attributes, size + page) == 0);
    int error = pthread_create(&threads[0], &attributes, tiny_thread, (void *)(uintptr_t)3000000);
    if (!error) break;
    CHECKF(error == EINVAL && size < 1 << 20, "%s", strerror(error));
    size *= 2;
  }
  for (size_t i = 1; i < N; i++) start(&threads[i], &attributes, tiny_thread, (void *)(uintptr_t)(3000000 + i));
  for (size_t i = 0; i < N; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK(pthread_attr_destroy(&attributes) == 0);
  printf("ok %d threads with stacks of %zu bytes\n", N, size);
}

/* ---- the process ends with the program's last thread, which is not its first: libc's doing, who counts them ---- */

static void *last_thread(void *argument) {
  sleep_ns(20000000);
  return argument;
}

static void end_first(void) {
  pthread_t thread;
  free(opaque(malloc(100))); /* a first thread that never does has nothing that ends with it */
  mesh_api_compact(&api);    /* there are threads of the library's by now */
  start(&thread, NULL, last_thread, NULL);
  pthread_exit(NULL);
}

/* As a program that begins, and as a forked child. */
static void last_thread_ends_it(bool anew) {
  int status;
  pid_t child = fork(), ended = 0;
  CHECK(child >= 0);
  if (!child && anew) execl("/proc/self/exe", "threads", "last", (char *)NULL);
  if (!child) end_first();
  uint64_t latest = now_ns() + UINT64_C(20000000000) * test_slow();
  while ((ended = waitpid(child, &status, WNOHANG)) == 0 && now_ns() < latest) sleep_ns(1000000);
  if (!ended) kill(child, SIGKILL);
  CHECKF(ended == child && status == 0, "a process lives on without a thread of the program's, or ends with %#x",
         ended ? (unsigned)status : 0U);
}

int main(int argc, char **argv) {
  (void)argv;
  test_seed = test_begin();
  test_watchdog(test_is_long() ? 1200 : 120);
  api = mesh_api_find();
  if (argc > 1) end_first();
  last_thread_ends_it(true);
#ifdef __GLIBC__ /* with musl, a child that forked so lives on: see doc/conditions.md */
  last_thread_ends_it(false);
#endif
  printf("ok the last thread ends the process\n");
  block_check(constructed);
  CHECK(atexit(at_exit) == 0);
  /* One key is older than anything the allocator makes on first use by a thread, as far as a program can tell. */
  CHECK(pthread_key_create(&early_key, early_destructor) == 0);
  void *touch = malloc(1);
  free(opaque(touch));
  CHECK(pthread_key_create(&late_key, late_destructor) == 0);
  tiny_stacks();
  waves();
  producers_and_consumers();
  owners_exit();
  printf("passed\n");
  return 0;
}
