/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole interface against a model, at random. Each live block is known: its bytes, its size, its alignment, how it
 * is to be freed; and a shadow of the address space tells whether two overlap. Rounds of 1 to 16 threads go through
 * phases that fill, thin out, churn, rewrite and read the heap; blocks change hands between phases, so that they are
 * freed by others; processes are forked in every way, with a child that goes on with the heap it got.
 *
 *   stress [ROUNDS [FIRST]]   default: 16 rounds, or 3000 with MESH_UFFD_TEST_LONG=1
 *
 * What a thread does follows from the seed alone, so that a seed replays but for the interleaving; round N alone is
 * `stress 1 N`. Passes are forced by MESH_UFFD_TEST_EAGER=1, which the program sets for itself.
 */
#include "test.h"

#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum {
  MAX_THREADS = 16,
  SLOTS = 49152, /* of all threads together */
  PHASES = 6,
  OPS = 120000, /* of all threads together, in a phase */
  TICKET = 64,  /* blocks handed over at once */
};
static const size_t MAX_BYTES = (size_t)64 << 20; /* of all threads together */

static struct mesh_api api;
static uint64_t base_seed;
static size_t page;
static unsigned round_number;
static bool meshes_alone; /* this tier meshes a process of one thread only */

extern char **environ;

/* Names that a C header or an older libc does not have. */
static struct {
  void *(*new_)(size_t), *(*new_aligned)(size_t, size_t);
  void (*delete_)(void *), (*delete_aligned)(void *, size_t);
  void (*free_sized)(void *, size_t), (*free_aligned_sized)(void *, size_t, size_t);
} extra;

static void find_extra(void) {
  mesh_api_symbol("_Znwm", &extra.new_);
  mesh_api_symbol("_ZnwmSt11align_val_t", &extra.new_aligned);
  mesh_api_symbol("_ZdlPv", &extra.delete_);
  mesh_api_symbol("_ZdlPvSt11align_val_t", &extra.delete_aligned);
  mesh_api_symbol("free_sized", &extra.free_sized);
  mesh_api_symbol("free_aligned_sized", &extra.free_aligned_sized);
}

/* ---- the model ---- */

enum owner { BY_FREE, BY_FREE_ALIGNED, BY_DELETE, BY_DELETE_ALIGNED };

struct block {
  unsigned char *p; /* NULL: none */
  size_t size, align, usable;
  size_t filled; /* bytes of the pattern: size, or all that is usable */
  uint64_t seed;
  enum owner owner;
};

struct worker {
  pthread_t thread;
  unsigned index, phase;
  size_t op;
  struct rng rng;
  struct block *blocks;
  size_t slots, used, bytes, max_bytes;
  struct block ticket[TICKET];
  size_t ticket_n;
  bool forked_raw; /* a child whose libc may have locks of threads that do not exist */
  const char *doing;
};
static struct worker workers[MAX_THREADS];
static unsigned thread_count;
static pthread_barrier_t phase_barrier;

#define BAD(w, ...) bad(__LINE__, w, __VA_ARGS__)
__attribute__((noreturn, format(printf, 3, 4))) static void bad(int line, const struct worker *w, const char *format,
                                                                ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  test_fail(__FILE__, line, "seed %#llx, round %u of %u threads, thread %u, phase %u, operation %zu (%s): %s",
            (unsigned long long)base_seed, round_number, thread_count, w->index, w->phase, w->op, w->doing, text);
}

/* One bit for each 16 bytes of address space, set where a live block is. */
static _Atomic uint64_t *shadow;
enum { ADDRESS_BITS = 47 };

static void shadow_make(void) {
  size_t bytes = (size_t)1 << (ADDRESS_BITS - 4 - 3);
  void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(at != MAP_FAILED);
  madvise(at, bytes, MADV_NOHUGEPAGE);
  shadow = at;
}

/* Sets or clears the bits of [p, p + n). Returns false when one was so already. */
static bool shadow_set(const void *p, size_t n, bool set) {
  uint64_t first = (uintptr_t)p / 16, end = ((uintptr_t)p + n + 15) / 16;
  bool fine = true;
  while (first < end) {
    uint64_t in_word = 64 - first % 64, take = end - first < in_word ? end - first : in_word;
    uint64_t mask = (take == 64 ? ~(uint64_t)0 : ((uint64_t)1 << take) - 1) << first % 64;
    _Atomic uint64_t *word = &shadow[first / 64];
    uint64_t before = set ? atomic_fetch_or(word, mask) : atomic_fetch_and(word, ~mask);
    fine &= (before & mask) == (set ? 0 : mask);
    first += take;
  }
  return fine;
}

/* Large blocks carry their pattern at each page's start and in their last bytes. */
enum { WHOLE = 1 << 15, PIECE = 64 };

static void fill(struct block *b, size_t n, uint64_t seed) {
  b->filled = n;
  b->seed = seed;
  if (n <= WHOLE) {
    pattern_fill(b->p, n, seed);
    return;
  }
  for (size_t at = 0; at + PIECE <= n; at += page) pattern_fill(b->p + at, PIECE, seed + at);
  pattern_fill(b->p + n - PIECE, PIECE, seed);
}

/* Offset of what is wrong within the first n bytes of the pattern, n if nothing is. */
static size_t check_prefix(const struct block *b, const unsigned char *p, size_t n) {
  size_t good;
  if (b->filled <= WHOLE) return pattern_check(p, n, b->seed);
  for (size_t at = 0; at + PIECE <= n; at += page) {
    if (at + PIECE > b->filled - PIECE && at + PIECE <= b->filled) continue; /* may be under the last bytes */
    if ((good = pattern_check(p + at, PIECE, b->seed + at)) != PIECE) return at + good;
  }
  if (n < b->filled) return n;
  good = pattern_check(p + n - PIECE, PIECE, b->seed);
  return good == PIECE ? n : n - PIECE + good;
}

static void check(const struct worker *w, const struct block *b) {
  size_t good = check_prefix(b, b->p, b->filled);
  if (good == b->filled) return;
  uint64_t have[4] = {0};
  size_t left = b->filled - good;
  memcpy(have, b->p + good, left < sizeof have ? left : sizeof have);
  BAD(w, "block %p of %zu bytes (usable %zu, align %zu) is wrong at offset %zu: %#llx %#llx %#llx %#llx", (void *)b->p,
      b->size, b->usable, b->align, good, (unsigned long long)have[0], (unsigned long long)have[1],
      (unsigned long long)have[2], (unsigned long long)have[3]);
}

/* ---- what a thread may do ---- */

static void adopt(struct worker *w, struct block *b) {
  w->used++;
  w->bytes += b->usable;
}

static void measure(struct worker *w, struct block *b) {
  b->usable = malloc_usable_size(b->p);
  if (b->usable < b->size) BAD(w, "%p: usable %zu of %zu", (void *)b->p, b->usable, b->size);
  if ((uintptr_t)b->p % b->align) BAD(w, "%p of %zu bytes is not aligned to %zu", (void *)b->p, b->size, b->align);
  if (api.present && (!api.is_ours(b->p) || api.usable_size(b->p) != b->usable))
    BAD(w, "%p is not known", (void *)b->p);
  if (!shadow_set(b->p, b->usable, true))
    BAD(w, "%p of %zu bytes (usable %zu) overlaps another", (void *)b->p, b->size, b->usable);
}

static void refill(struct worker *w, struct block *b) {
  fill(b, rng_below(&w->rng, 4) ? b->size : b->usable, rng_next(&w->rng));
}

static size_t favourite_sizes[3]; /* of a round */

static size_t random_size(struct worker *w) {
  size_t kind = rng_below(&w->rng, 1000);
  if (kind < 600) return favourite_sizes[kind % 3]; /* so that some classes are large enough to be meshed */
  if (kind < 700) return rng_below(&w->rng, 600);
  if (kind < 960) return rng_below(&w->rng, 2100);
  if (kind < 990) return rng_below(&w->rng, 34000);
  if (kind < 999) return rng_below(&w->rng, 200000);
  return rng_below(&w->rng, 3000000);
}

static size_t random_align(struct worker *w) {
  return (size_t)1 << (rng_below(&w->rng, 16) ? 3 + rng_below(&w->rng, 8) : 3 + rng_below(&w->rng, 18));
}

static void must_be_zero(const struct worker *w, const unsigned char *p, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (p[i]) BAD(w, "byte %zu of %zu at %p from calloc is %#x", i, n, (const void *)p, p[i]);
}

static void *zeroed(struct worker *w, size_t size) {
  size_t count = 1 + rng_below(&w->rng, 8), each = size / count;
  void *p = each * count == size ? calloc(count, each) : calloc(1, size);
  if (p) must_be_zero(w, p, size);
  return p;
}

static void *by_posix(struct worker *w, size_t align, size_t size) {
  void *p = NULL;
  int r = posix_memalign(&p, align, size);
  if (r) BAD(w, "posix_memalign(%zu, %zu): %d", align, size, r);
  return p;
}

static void allocate(struct worker *w, struct block *b) {
  size_t size = random_size(w), align = random_align(w);
  unsigned how = (unsigned)rng_below(&w->rng, 24);
  if (align > page && size > 100000) align = page;
  *b = (struct block){.size = size, .align = size >= 16 ? 16 : 8, .owner = BY_FREE};
  switch (how) {
  case 0:
    w->doing = "aligned_alloc";
    b->p = aligned_alloc(b->align = align, b->size = (size + align - 1) / align * align);
    if (extra.free_aligned_sized) b->owner = BY_FREE_ALIGNED;
    break;
  case 1:
    w->doing = "posix_memalign";
    b->p = by_posix(w, b->align = align, size);
    break;
  case 2:
    w->doing = "memalign";
    b->p = memalign(b->align = align, size);
    break;
  case 3:
    w->doing = size % 2 ? "valloc" : "pvalloc";
    b->align = page;
    if (size % 2 == 0) b->size = (size + page - 1) / page * page;
    b->p = size % 2 ? valloc(size) : pvalloc(size);
    break;
  case 4:
  case 5:
  case 6:
    w->doing = "calloc";
    b->p = zeroed(w, size);
    break;
  case 7:
    w->doing = "realloc(NULL)";
    b->p = realloc(opaque(NULL), size);
    break;
  case 8:
    w->doing = "reallocarray(NULL)";
    b->p = reallocarray(opaque(NULL), 1, size);
    break;
  case 9:
    w->doing = "operator new";
    if (extra.new_ && extra.delete_)
      b->p = extra.new_(size), b->owner = BY_DELETE;
    else
      b->p = malloc(size);
    break;
  case 10:
    w->doing = "aligned operator new";
    if (extra.new_aligned && extra.delete_aligned)
      b->p = extra.new_aligned(size, b->align = align), b->owner = BY_DELETE_ALIGNED;
    else
      b->p = malloc(size);
    break;
  default:
    w->doing = "malloc";
    b->p = malloc(size);
  }
  if (!b->p) BAD(w, "no memory for %zu bytes aligned to %zu", b->size, b->align);
  measure(w, b);
  refill(w, b);
  adopt(w, b);
}

static void forget(struct worker *w, struct block *b) {
  if (!shadow_set(b->p, b->usable, false)) BAD(w, "%p: the shadow is damaged", (void *)b->p);
  w->used--;
  w->bytes -= b->usable;
}

static void give_back(struct worker *w, struct block *b) {
  w->doing = "free";
  check(w, b);
  forget(w, b);
  errno = 4242;
  if (b->owner == BY_FREE_ALIGNED)
    extra.free_aligned_sized(b->p, b->align, b->size);
  else if (b->owner == BY_DELETE)
    extra.delete_(b->p);
  else if (b->owner == BY_DELETE_ALIGNED)
    extra.delete_aligned(b->p, b->align);
  else if (extra.free_sized && b->align <= 16 && b->size % 3 == 0)
    extra.free_sized(b->p, b->size);
  else
    free(b->p);
  if (errno != 4242) BAD(w, "free changed errno to %d", errno);
  b->p = NULL;
}

/* What the block held must be in the new one, as far as both go. */
static void resize(struct worker *w, struct block *b) {
  size_t size = rng_below(&w->rng, 3) ? random_size(w) : b->size + rng_below(&w->rng, b->size / 2 + 64);
  struct block old = *b;
  if (b->owner != BY_FREE) return;
  check(w, b);
  forget(w, b);
  bool by_array = rng_below(&w->rng, 4) == 0;
  w->doing = by_array ? "reallocarray" : "realloc";
  b->p = by_array ? reallocarray(b->p, 1, size) : realloc(b->p, size);
  if (size == 0) {
    if (b->p) BAD(w, "realloc(p, 0) is %p", (void *)b->p);
    return;
  }
  if (!b->p) BAD(w, "no memory for %zu bytes", size);
  b->size = size;
  b->align = size >= 16 ? 16 : 8;
  measure(w, b);
  size_t kept = old.filled < size ? old.filled : size;
  if (old.size < old.filled && kept > old.size) kept = old.size; /* only what was asked for must be kept */
  size_t good = check_prefix(&old, b->p, kept);
  if (good < kept)
    BAD(w, "of %zu bytes at %p, %zu now at %p, the one at offset %zu is wrong", old.size, (void *)old.p, size,
        (void *)b->p, good);
  refill(w, b);
  adopt(w, b);
}

/* What must fail does, and changes nothing. */
static void fail_on_purpose(struct worker *w, struct block *b) {
  static const size_t huge[] = {(size_t)PTRDIFF_MAX + 1, SIZE_MAX, SIZE_MAX - 4096, (size_t)1 << 47};
  size_t n = opaque_size(huge[rng_below(&w->rng, 4)]);
  void *out = &out;
  w->doing = "what must fail";
  errno = 0;
  if (malloc(n) || errno != ENOMEM) BAD(w, "malloc(%zu): errno %d", n, errno);
  if (calloc(n, 16)) BAD(w, "calloc(%zu, 16)", n);
  if (memalign(64, n) || aligned_alloc(page, n) || pvalloc(n)) BAD(w, "aligned, of %zu bytes", n);
  if (posix_memalign(&out, 64, n) != ENOMEM || out != &out) BAD(w, "posix_memalign(%zu)", n);
  if (posix_memalign(&out, opaque_size(24), 8) != EINVAL) BAD(w, "posix_memalign of a bad alignment");
  if (b->p && b->owner == BY_FREE) {
    errno = 0;
    if (realloc(b->p, n) || errno != ENOMEM) BAD(w, "realloc(p, %zu): errno %d", n, errno);
    if (reallocarray(b->p, n / 2, 16)) BAD(w, "reallocarray(p, %zu, 16)", n / 2);
    check(w, b);
  }
}

static void ask(struct worker *w, const struct block *b) {
  struct mesh_uffd_stats s;
  w->doing = "the library's own interface";
  switch (rng_below(&w->rng, 8)) {
  case 0:
    malloc_trim(0);
    break;
  case 1:
    mesh_api_compact(&api);
    break;
  case 2:
    if (!api.present) break;
    api.pause();
    for (int i = 0; i < 50; i++) sched_yield();
    api.resume();
    break;
  case 3:
    s = mesh_api_stats(&api);
    if (api.present && s.meshed_pages > s.meshed_pages_hwm) BAD(w, "more meshed pages than ever");
    break;
#ifdef __GLIBC__
  case 4:
    if (mallinfo2().uordblks > (size_t)1 << 40) BAD(w, "mallinfo2 counts backwards");
    break;
  case 5: {
    if (w->forked_raw) break;
    FILE *null = fopen("/dev/null", "w");
    if (null) malloc_info(0, null), fclose(null);
    break;
  }
#endif
  default:
    if (api.present && b->p) {
      int r = api.exempt(b->p);
      if (r && r != EBUSY) BAD(w, "exempt: %d", r);
      check(w, b);
    }
  }
}

/* Leaves one in `keep`: what a pass is for. */
static void thin(struct worker *w) {
  size_t keep = 4 + rng_below(&w->rng, 40);
  for (size_t i = 0; i < w->slots; i++)
    if (w->blocks[i].p && rng_below(&w->rng, keep)) give_back(w, &w->blocks[i]);
}

/* ---- forks ---- */

static void churn(struct worker *w, size_t ops, unsigned grow, unsigned shrink);

static void check_all(struct worker *w) {
  const char *doing = w->doing;
  for (size_t i = 0; i < w->slots; i++)
    if (w->blocks[i].p) check(w, &w->blocks[i]);
  w->doing = doing;
}

/* Without the library only fork() leaves the child's malloc usable. */
static pid_t fork_somehow(unsigned how) {
  switch (api.present ? how : 2) {
  case 0:
    return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  case 1:
    return _Fork();
  default:
    return fork();
  }
}

/* The child has the heap as it was: what belongs to this thread must be right, and can be gone on with. */
__attribute__((noreturn)) static void live_as_child(struct worker *w, int depth) {
  alarm(300 * test_slow());
  w->doing = "a forked child";
  check_all(w);
  if (rng_below(&w->rng, 4) == 0) {
    thin(w);
    mesh_api_compact(&api);
    check_all(w);
  }
  churn(w, 2000, 30, 50);
  if (depth < 2 && !w->forked_raw && rng_below(&w->rng, 4) == 0) {
    pid_t pid = fork();
    if (pid == 0) live_as_child(w, depth + 1);
    int status = -1;
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status) BAD(w, "a child's child: status %#x", (unsigned)status);
  }
  w->doing = "the end of a child";
  check_all(w);
  _exit(0);
}

static void spawn_true(struct worker *w) {
  char name[] = "true", *args[] = {name, NULL};
  pid_t pid;
  int status = -1;
  if (posix_spawnp(&pid, "true", NULL, NULL, args, environ)) return;
  if (waitpid(pid, &status, 0) != pid || status) BAD(w, "a spawned program: status %#x", (unsigned)status);
}

static void have_child(struct worker *w) {
  unsigned how = (unsigned)rng_below(&w->rng, 8);
  w->doing = "fork";
  if (how == 7) {
    spawn_true(w);
    return;
  }
  /* The child inherits the generator as it is; the parent's takes another way. */
  pid_t pid = fork_somehow(how);
  if (pid == 0) {
    w->forked_raw = how < 2;
    live_as_child(w, 0);
  }
  if (pid < 0) BAD(w, "no fork");
  rng_next(&w->rng);
  churn(w, 500, 40, 40); /* both write at the same time */
  int status = -1;
  w->doing = "waiting for a child";
  if (waitpid(pid, &status, 0) != pid || status) BAD(w, "a child (%u): status %#x", how, (unsigned)status);
}

/* ---- phases ---- */

static void step(struct worker *w, unsigned grow, unsigned shrink) {
  struct block *b = &w->blocks[rng_below(&w->rng, w->slots)];
  unsigned dice = (unsigned)rng_below(&w->rng, 100);
  w->op++;
  if (!b->p) {
    if (dice < grow && w->bytes < w->max_bytes) allocate(w, b);
  } else if (dice < shrink) {
    give_back(w, b);
  } else if (dice < shrink + 6) {
    resize(w, b);
  } else if (dice < shrink + 9) {
    w->doing = "rewriting";
    check(w, b);
    refill(w, b);
  } else if (dice < shrink + 25) {
    w->doing = "reading";
    check(w, b);
  }
  if (w->op % 1499 == 0) ask(w, b);
  if (w->op % 4999 == 0) fail_on_purpose(w, b);
}

static void churn(struct worker *w, size_t ops, unsigned grow, unsigned shrink) {
  for (size_t i = 0; i < ops; i++) step(w, grow, shrink);
}

static void hand_over(struct worker *w) {
  for (w->ticket_n = 0; w->ticket_n < TICKET && w->used;) {
    struct block *b = &w->blocks[rng_below(&w->rng, w->slots)];
    if (!b->p) {
      if (rng_below(&w->rng, 64) == 0) break;
      continue;
    }
    w->used--;
    w->bytes -= b->usable;
    w->ticket[w->ticket_n++] = *b;
    b->p = NULL;
  }
}

/* The blocks of the neighbour's ticket: some are kept, some freed at once. */
static void receive(struct worker *w) {
  struct worker *from = &workers[(w->index + 1) % thread_count];
  for (size_t i = 0; i < from->ticket_n; i++) {
    struct block *b = &w->blocks[rng_below(&w->rng, w->slots)], other;
    bool keep = !b->p && rng_below(&w->rng, 2);
    if (!keep) b = &other;
    *b = from->ticket[i];
    adopt(w, b);
    w->doing = "a block of another thread's";
    check(w, b);
    if (!keep) give_back(w, b);
  }
}

static void meet(void) {
  if (thread_count > 1) pthread_barrier_wait(&phase_barrier);
}

static void *work(void *argument) {
  struct worker *w = argument;
  size_t ops = OPS / thread_count;
  for (w->phase = 0; w->phase < PHASES; w->phase++) {
    switch (rng_below(&w->rng, 7)) {
    case 0:
    case 1:
      churn(w, ops, 90, 5);
      break;
    case 2:
    case 3:
    case 4:
      churn(w, ops / 2, 90, 5);
      thin(w);
      if (rng_below(&w->rng, 2)) mesh_api_compact(&api);
      churn(w, ops / 4, 5, 5);
      break;
    case 5:
      churn(w, ops, 50, 40);
      break;
    default:
      churn(w, ops / 4, 20, 60);
      check_all(w);
    }
    if (rng_below(&w->rng, thread_count) == 0) have_child(w);
    meet();
    hand_over(w);
    meet();
    receive(w);
    meet();
  }
  return NULL;
}

static void prepare(struct worker *w, unsigned index) {
  struct block *blocks = w->blocks;
  *w = (struct worker){.index = index, .blocks = blocks, .doing = "nothing"};
  w->rng = rng_from(base_seed, ((uint64_t)round_number << 8) + index);
  w->slots = SLOTS / thread_count;
  w->max_bytes = MAX_BYTES / thread_count;
}

/* What a round leaves is freed by the main thread, after the threads have ended. */
static void clean_up(struct worker *w) {
  for (size_t i = 0; i < w->slots; i++)
    if (w->blocks[i].p) give_back(w, &w->blocks[i]);
  if (w->used || w->bytes) BAD(w, "%zu blocks, %zu bytes are left", w->used, w->bytes);
}

static void run_round(unsigned number) {
  static const unsigned counts[] = {1, 4, 2, 8, 1, 3, 16, 6};
  round_number = number;
  thread_count = meshes_alone && number % 2 ? 1 : counts[number % (sizeof counts / sizeof *counts)];
  struct rng rng = rng_from(base_seed, ((uint64_t)round_number << 8) + MAX_THREADS);
  for (int i = 0; i < 3; i++) favourite_sizes[i] = 1 + rng_below(&rng, i < 2 ? 300 : 2048);
  for (unsigned i = 0; i < thread_count; i++) prepare(&workers[i], i);
  if (thread_count == 1) {
    work(&workers[0]); /* by the process's one thread */
  } else {
    CHECK(pthread_barrier_init(&phase_barrier, NULL, thread_count) == 0);
    for (unsigned i = 0; i < thread_count; i++) CHECK(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0);
    for (unsigned i = 0; i < thread_count; i++) CHECK(pthread_join(workers[i].thread, NULL) == 0);
    pthread_barrier_destroy(&phase_barrier);
  }
  for (unsigned i = 0; i < thread_count; i++) clean_up(&workers[i]);
}

/* Options are read before main: so once more, with those that force passes. */
static void run_again_eagerly(char **argv) {
  if (!api.present || getenv("MESH_UFFD_TEST_EAGER")) return;
  setenv("MESH_UFFD_TEST_EAGER", "1", 1);
  setenv("MESH_UFFD_TEST_VALIDATE", "1", 0);
  execv("/proc/self/exe", argv);
}

int main(int argc, char **argv) {
  api = mesh_api_find();
  run_again_eagerly(argv);
  base_seed = test_begin();
#ifndef __GLIBC__
  unsetenv("LD_PRELOAD"); /* the programs started here have glibc, perhaps, and the library then not */
#endif
  unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 0) : test_is_long() ? 3000 : 16;
  unsigned first = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 0;
  const char *tier = getenv("MESH_UFFD_TEST_TIER");
  meshes_alone = tier && strtoul(tier, NULL, 0) > MESH_UFFD_TIER_FULL_WP;
  page = (size_t)sysconf(_SC_PAGESIZE);
  find_extra();
  shadow_make();
  for (unsigned i = 0; i < MAX_THREADS; i++) {
    workers[i].blocks = mmap(NULL, SLOTS * sizeof(struct block), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(workers[i].blocks != MAP_FAILED);
  }
  for (unsigned i = 0; i < rounds; i++) {
    test_watchdog(600); /* a round takes seconds */
    run_round(first + i);
  }
  struct mesh_uffd_stats s = mesh_api_stats(&api);
  print_stats(&s);
  if (api.present) {
    test_expect_tier(s.tier);
    CHECKF(!tier_is_full(s.tier) || (s.passes && s.meshes), "nothing was meshed");
  }
  printf("passed: %u rounds\n", rounds);
  return 0;
}
