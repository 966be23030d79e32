/* SPDX-License-Identifier: Apache-2.0 */
/* The workloads of bench/run that have several threads. See usage(). */
#include "bench/speed.h"

#include <pthread.h>
#include <stdatomic.h>

enum { MOST_THREADS = 64 };

static size_t thread_count, operations;
static struct sizes sizes;

struct worker {
  pthread_t thread;
  size_t index;
  struct rng rng;
};

static void start(struct worker *w, size_t index, void *(*run)(void *)) {
  w->index = index;
  w->rng.state = TAG + index * 7919;
  if (pthread_create(&w->thread, NULL, run, w)) give_up("cannot create a thread");
}

static void run_all(void *(*run)(void *)) {
  static struct worker workers[MOST_THREADS];
  for (size_t i = 0; i < thread_count; i++) start(&workers[i], i, run);
  for (size_t i = 0; i < thread_count; i++) pthread_join(workers[i].thread, NULL);
}

/* ---- larson: after a while a thread hands its objects on to another one, which frees them and makes new ones -------
 */

enum { LARSON_SLOTS = 1000, LARSON_TURN = 10000 };

static _Atomic(void **) desk;

static void *larson_worker(void *argument) {
  struct worker *w = argument;
  void **items = pointers_new(LARSON_SLOTS);
  for (size_t i = 0; i < operations; i++) {
    void **slot = &items[rng_below(&w->rng, LARSON_SLOTS)];
    object_free(*slot);
    *slot = object_new(sizes_pick(&sizes, &w->rng));
    if (i % LARSON_TURN == LARSON_TURN - 1) items = atomic_exchange(&desk, items);
  }
  for (size_t i = 0; i < LARSON_SLOTS; i++) object_free(items[i]);
  free(items);
  return NULL;
}

static void larson(void) {
  atomic_store(&desk, pointers_new(LARSON_SLOTS));
  run_all(larson_worker);
  void **items = atomic_exchange(&desk, NULL);
  for (size_t i = 0; i < LARSON_SLOTS; i++) object_free(items[i]);
  free(items);
}

/* ---- hand: half of the threads make objects, the other half frees them ----------------------------------------------
 */

enum { BATCH = 256, BATCHES = 16 };

struct queue {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  void *items[BATCHES][BATCH];
  size_t head, tail;
};

static struct queue queues[MOST_THREADS / 2];

static void produce(struct queue *q, struct rng *r) {
  void *batch[BATCH];
  for (size_t n = 0; n < operations / BATCH; n++) {
    for (size_t i = 0; i < BATCH; i++) batch[i] = object_new(sizes_pick(&sizes, r));
    pthread_mutex_lock(&q->lock);
    while (q->head - q->tail == BATCHES) pthread_cond_wait(&q->changed, &q->lock);
    memcpy(q->items[q->head++ % BATCHES], batch, sizeof batch);
    pthread_cond_signal(&q->changed);
    pthread_mutex_unlock(&q->lock);
  }
}

static void consume(struct queue *q) {
  void *batch[BATCH];
  for (size_t n = 0; n < operations / BATCH; n++) {
    pthread_mutex_lock(&q->lock);
    while (q->head == q->tail) pthread_cond_wait(&q->changed, &q->lock);
    memcpy(batch, q->items[q->tail++ % BATCHES], sizeof batch);
    pthread_cond_signal(&q->changed);
    pthread_mutex_unlock(&q->lock);
    for (size_t i = 0; i < BATCH; i++) object_free(batch[i]);
  }
}

static void *hand_worker(void *argument) {
  struct worker *w = argument;
  struct queue *q = &queues[w->index / 2];
  if (w->index % 2)
    consume(q);
  else
    produce(q, &w->rng);
  return NULL;
}

static void hand(void) {
  for (size_t i = 0; i < thread_count / 2; i++) {
    pthread_mutex_init(&queues[i].lock, NULL);
    pthread_cond_init(&queues[i].changed, NULL);
  }
  thread_count &= ~(size_t)1;
  run_all(hand_worker);
}

/* ---- spawn: threads that live for a few objects; half of them are freed by whoever waited for the thread ------------
 */

enum { SPAWN_OBJECTS = 100 };

static void *spawn_worker(void *argument) {
  struct worker *w = argument;
  void **items = pointers_new(SPAWN_OBJECTS);
  for (size_t i = 0; i < SPAWN_OBJECTS; i++) items[i] = object_new(sizes_pick(&sizes, &w->rng));
  for (size_t i = 0; i < SPAWN_OBJECTS; i += 2) {
    object_free(items[i]);
    items[i] = NULL;
  }
  return items;
}

static void spawn(void) {
  static struct worker workers[MOST_THREADS];
  for (size_t round = 0; round < operations / thread_count; round++) {
    for (size_t i = 0; i < thread_count; i++) start(&workers[i], i, spawn_worker);
    for (size_t i = 0; i < thread_count; i++) {
      void *left;
      pthread_join(workers[i].thread, &left);
      for (size_t k = 0; k < SPAWN_OBJECTS; k++) object_free(((void **)left)[k]);
      free(left);
    }
  }
}

/* ---- contend: each thread for itself --------------------------------------------------------------------------------
 */

enum { CONTEND_SLOTS = 2000 };

static void *contend_worker(void *argument) {
  struct worker *w = argument;
  void **items = pointers_new(CONTEND_SLOTS);
  for (size_t i = 0; i < operations; i++) {
    void **slot = &items[rng_below(&w->rng, CONTEND_SLOTS)];
    object_free(*slot);
    *slot = object_new(sizes_pick(&sizes, &w->rng));
  }
  for (size_t i = 0; i < CONTEND_SLOTS; i++) object_free(items[i]);
  free(items);
  return NULL;
}

/* ---- fragment: each thread has data with holes, and works on them ---------------------------------------------------
 */

enum { FRAGMENT_BYTES = 24 << 20, FRAGMENT_KEEP = 25 };

static void *fragment_worker(void *argument) {
  struct worker *w = argument;
  struct fragmented f = fragmented_new(FRAGMENT_BYTES, FRAGMENT_KEEP, &sizes, &w->rng);
  if (!fragmented_work(&f, operations, &sizes, &w->rng)) give_up("nothing was read");
  fragmented_free(&f);
  return NULL;
}

static int usage(void) {
  fputs("usage: speed_threads WORKLOAD THREADS LOW HIGH OPERATIONS\n"
        "objects of LOW to HIGH bytes; OPERATIONS of each thread (spawn: threads in all)\n"
        "workloads: larson, hand, spawn, contend, fragment\n",
        stderr);
  return 2;
}

int main(int argc, char **argv) {
  if (argc != 6) return usage();
  const char *name = argv[1];
  thread_count = number(argv[2]);
  sizes = (struct sizes){number(argv[3]), number(argv[4]), false};
  operations = number(argv[5]);
  if (thread_count < 1 || thread_count > MOST_THREADS || sizes.low < SMALLEST || sizes.high < sizes.low) return usage();
  if (!strcmp(name, "larson"))
    larson();
  else if (!strcmp(name, "hand"))
    hand();
  else if (!strcmp(name, "spawn"))
    spawn();
  else if (!strcmp(name, "contend"))
    run_all(contend_worker);
  else if (!strcmp(name, "fragment"))
    run_all(fragment_worker);
  else
    return usage();
  return 0;
}
