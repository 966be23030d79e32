/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is remembered: each stack that a sample was allocated from, for good, and each sample until it is freed. All of
 * it lies in one mapping whose size is fixed; what does not fit is counted, at the stack that stands for all others, or
 * as lost.
 */
#include "src/profile.h"
#include "src/global_heap.h"
#include "src/log.h"
#include "src/mesher.h"
#include "src/options.h"
#include "src/sampling.h"
#include "src/sys.h"
#include "src/thread_local_heap.h"
#include "src/unwind.h"
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  STACKS = 1 << 14,
  BUCKETS = 1 << 14,
  ADDRESSES = 1 << 19, /* of all stacks together; 32 each */
  SAMPLES = 1 << 18,   /* slots of the table; at the usual interval it is half full at 64 GiB */
  MAX_SAMPLES = SAMPLES / 4 * 3,
  MAYBE_SAMPLED = 1 << 18, /* counters of the filter */
  OTHERS = 1,              /* the stack that stands for those there is no room for */
  NAME_ROOM = 4096,
};

/*
 * A free asks the filter first, without a lock: a counter for each hash of an address, of the samples that have it. Who
 * frees an object has it from who allocated it, and sees what was counted by then. A counter that is full stays so.
 *
 * samples is a hash table with open addressing: an object is found between its hash and the next slot that is empty.
 */
struct tables {
  struct mu_profile_stack stacks[STACKS];
  uint32_t buckets[BUCKETS];
  uintptr_t addresses[ADDRESSES];
  struct mu_profile_sample samples[SAMPLES];
  _Atomic uint8_t maybe_sampled[MAYBE_SAMPLED];
};

struct mu_lock mu_profile_lock = MU_LOCK_INIT(MU_RANK_PROFILE);
static struct {
  struct tables *t;
  uint32_t stack_count, address_count, sample_count;
  uint64_t lost;
  uint64_t since_ns;
  int pid; /* of the process that began */
  uint32_t written;
  char name[NAME_ROOM];
} profile; /* 4 KiB, of which no process without a profile has a page */

bool mu_profile_on;
_Atomic uint32_t mu_profile_asked;

static uint64_t mix(uint64_t n) {
  n *= 0x9E3779B97F4A7C15U; /* 2^64 divided by the golden ratio */
  return n ^ n >> 32;
}

/* ---- samples ----------------------------------------------------------------------------------------------------- */

static _Atomic uint8_t *counter_of(uintptr_t object) {
  return &profile.t->maybe_sampled[mix(object >> 4) % MAYBE_SAMPLED];
}

static void count(uintptr_t object, int by) {
  _Atomic uint8_t *counter = counter_of(object);
  uint8_t n = atomic_load_explicit(counter, memory_order_relaxed);
  if (n != UINT8_MAX) atomic_store_explicit(counter, (uint8_t)(n + by), memory_order_relaxed); /* under the lock */
}

static uint32_t home_of(uintptr_t object) {
  return (uint32_t)(mix(object >> 4) >> 20) % SAMPLES;
}

static struct mu_profile_sample *slot_of(uintptr_t object) {
  uint32_t i = home_of(object);
  struct mu_profile_sample *samples = profile.t->samples;
  while (samples[i].object && samples[i].object != object) i = (i + 1) % SAMPLES;
  return &samples[i];
}

static void insert(const struct mu_profile_sample *sample) {
  if (profile.sample_count == MAX_SAMPLES) {
    profile.lost++;
    return;
  }
  struct mu_profile_sample *slot = slot_of(sample->object);
  if (!slot->object) {
    profile.sample_count++;
    count(sample->object, 1);
  }
  *slot = *sample;
}

/* The gap is closed by whatever would not be found across it any more. */
static void erase(struct mu_profile_sample *slot) {
  struct mu_profile_sample *samples = profile.t->samples;
  uint32_t gap = (uint32_t)(slot - samples), i = gap;
  count(slot->object, -1);
  profile.sample_count--;
  for (;;) {
    i = (i + 1) % SAMPLES;
    if (!samples[i].object) break;
    uint32_t from_home = (i - home_of(samples[i].object)) % SAMPLES;
    if (from_home < (i - gap) % SAMPLES) continue; /* its home lies behind the gap */
    samples[gap] = samples[i];
    gap = i;
  }
  samples[gap].object = 0;
}

/* ---- stacks ------------------------------------------------------------------------------------------------------ */

static bool is_stack(const struct mu_profile_stack *s, uint32_t hash, const uintptr_t *pcs, unsigned depth) {
  return s->hash == hash && s->depth == depth && memcmp(&profile.t->addresses[s->first], pcs, depth * sizeof *pcs) == 0;
}

static uint32_t find_stack(const uintptr_t *pcs, unsigned depth) {
  struct tables *t = profile.t;
  uint64_t h = depth;
  for (unsigned i = 0; i < depth; i++) h = mix(h ^ pcs[i]) + i;
  uint32_t hash = (uint32_t)h, *bucket = &t->buckets[hash % BUCKETS];
  for (uint32_t i = *bucket; i; i = t->stacks[i].next)
    if (is_stack(&t->stacks[i], hash, pcs, depth)) return i;
  if (depth == 0 || profile.stack_count == STACKS || ADDRESSES - profile.address_count < depth) return OTHERS;
  uint32_t i = profile.stack_count++;
  memcpy(&t->addresses[profile.address_count], pcs, depth * sizeof *pcs);
  t->stacks[i] =
      (struct mu_profile_stack){.hash = hash, .next = *bucket, .first = profile.address_count, .depth = depth};
  profile.address_count += depth;
  *bucket = i;
  return i;
}

/* ---- what the entry points call ---------------------------------------------------------------------------------- */

static MU_NOINLINE void take_sample(void *p, size_t size) {
  uintptr_t pcs[MU_PROFILE_DEPTH];
  unsigned depth = mu_unwind(pcs, MU_PROFILE_DEPTH);
  double weight = mu_sample_weight(size, mu_options.profile);
  mu_lock_take(&mu_profile_lock);
  struct mu_profile_sample sample = {.object = (uintptr_t)p, .size = size, .stack = find_stack(pcs, depth)};
  struct mu_profile_stack *stack = &profile.t->stacks[sample.stack];
  stack->objects += weight;
  stack->bytes += weight * (double)size;
  insert(&sample);
  mu_lock_release(&mu_profile_lock);
}

bool mu_profile_leave_out(bool on) {
  bool before = mu_own_heap->profiling;
  if (mu_has_heap()) mu_own_heap->profiling = on;
  return before;
}

/* The next sample is due, or has not been chosen yet. A thread that has made nothing but large objects gets a heap to
 * count in; one that has ended and still allocates is not sampled. */
static MU_NOINLINE void sample_due(void *p, int64_t size) {
  if (!p || !mu_thread_start()) return;
  struct mu_thread_local_heap *t = mu_own_heap;
  if (!t->until_sample) t->until_sample = mu_next_sample(&t->rng, mu_options.profile);
  t->until_sample -= size;
  if (t->until_sample > 0) return;
  t->until_sample = mu_next_sample(&t->rng, mu_options.profile);
  t->profiling = true;
  take_sample(p, (size_t)size);
  t->profiling = false;
}

static MU_NOINLINE void answer_here(void) {
  if (mu_mesher_is_running()) return;
  bool before = mu_profile_leave_out(true);
  mu_profile_answer();
  mu_profile_leave_out(before);
}

/* `profiling` keeps out what the sampler allocates, or a handler that interrupts it. */
void mu_profile_alloc(void *p, size_t bytes) {
  struct mu_thread_local_heap *t = mu_own_heap;
  int64_t size = (int64_t)mu_max(bytes, 1);
  if (MU_UNLIKELY(t->profiling)) return;
  if (MU_UNLIKELY(atomic_load_explicit(&mu_profile_asked, memory_order_relaxed))) answer_here();
  if (MU_LIKELY(t->until_sample > size))
    t->until_sample -= size;
  else
    sample_due(p, size);
}

/* relaxed: see struct tables */
static inline bool maybe_sampled(const void *p) {
  return atomic_load_explicit(counter_of((uintptr_t)p), memory_order_relaxed);
}

struct mu_profile_sample mu_profile_take(void *p) {
  struct mu_profile_sample sample = {.object = 0};
  if (MU_LIKELY(!maybe_sampled(p))) return sample;
  mu_lock_take(&mu_profile_lock);
  struct mu_profile_sample *slot = slot_of((uintptr_t)p);
  if (slot->object) {
    sample = *slot;
    erase(slot);
  }
  mu_lock_release(&mu_profile_lock);
  return sample;
}

void mu_profile_free(void *p) {
  if (MU_UNLIKELY(maybe_sampled(p))) mu_profile_take(p);
}

void mu_profile_put_back(const struct mu_profile_sample *sample) {
  if (!sample->object) return;
  mu_lock_take(&mu_profile_lock);
  insert(sample);
  mu_lock_release(&mu_profile_lock);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

bool mu_profile_copy(struct mu_profile_copy *copy) {
  int err;
  const struct tables *t = profile.t;
  copy->bytes = sizeof t->stacks + MAX_SAMPLES * sizeof *t->samples;
  copy->memory =
      mu_mmap(NULL, copy->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
  if (!copy->memory) return false;
  copy->stacks = copy->memory;
  copy->samples = (void *)((char *)copy->memory + sizeof t->stacks);
  copy->addresses = t->addresses; /* what a stack refers to never changes */
  copy->sample_count = 0;
  mu_lock_take(&mu_profile_lock);
  copy->stack_count = profile.stack_count;
  copy->lost = profile.lost;
  memcpy(copy->stacks, t->stacks, profile.stack_count * sizeof *t->stacks);
  for (uint32_t i = 0; copy->sample_count < profile.sample_count && i < SAMPLES; i++)
    if (t->samples[i].object) copy->samples[copy->sample_count++] = t->samples[i];
  mu_lock_release(&mu_profile_lock);
  return true;
}

void mu_profile_copy_done(struct mu_profile_copy *copy) {
  mu_munmap(copy->memory, copy->bytes);
}

int mu_profile_write(const char *path) {
  if (!mu_profile_on) return ENOTSUP;
  bool before = mu_profile_leave_out(true);
  int err = mu_profile_encode(path, mu_options.profile, profile.since_ns);
  mu_profile_leave_out(before);
  return err;
}

/* The option's name, with %p for the process and %n for the number of the profile. */
static void make_name(char *to, size_t room) {
  size_t n = 0;
  for (const char *from = profile.name; *from && n + 12 < room; from++) {
    if (*from == '%' && (from[1] == 'p' || from[1] == 'n'))
      n += mu_format(to + n, room - n, "%u", *++from == 'p' ? (uint32_t)mu_pid() : profile.written);
    else
      to[n++] = *from;
  }
  to[n] = 0;
}

static void write_by_name(void) {
  char name[NAME_ROOM];
  profile.written++;
  make_name(name, sizeof name);
  int err = mu_profile_write(name);
  if (err) mu_log("the heap profile cannot be written to %.300s: error %d", name, err);
}

void mu_profile_answer(void) {
  if (atomic_exchange_explicit(&mu_profile_asked, 0, memory_order_relaxed)) write_by_name();
}

static bool names_process(void) {
  for (const char *c = profile.name; *c; c++)
    if (c[0] == '%' && c[1] == 'p') return true;
  return false;
}

/* A forked child would write over its parent's. */
void mu_profile_write_at_exit(void) {
  if (mu_profile_on && mu_options.profile_file && (names_process() || mu_pid() == profile.pid)) write_by_name();
}

static void on_signal(int signal) {
  (void)signal;
  atomic_store_explicit(&mu_profile_asked, 1, memory_order_relaxed);
  mu_mesher_look_up();
}

/* The program may change its directory, and what the environment's strings hold. */
static void keep_name(void) {
  const char *name = mu_options.profile_file ? mu_options.profile_file : "mesh-uffd.%p.%n.pb.gz";
  size_t n = 0;
  if (*name != '/' && getcwd(profile.name, sizeof profile.name / 2)) {
    n = strlen(profile.name);
    profile.name[n++] = '/';
  }
  mu_format(profile.name + n, sizeof profile.name - n, "%s", name);
}

void mu_profile_init(void) {
  int err;
  profile.t = mu_mmap(NULL, sizeof *profile.t, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                      0, &err);
  if (!profile.t) {
    mu_log("no memory for heap profiling");
    return;
  }
  profile.stack_count = OTHERS + 1;
  keep_name();
  profile.pid = mu_pid();
  profile.since_ns = mu_now_ns();
  mu_profile_on = true;
  mu_watch_calls();
  if (!mu_options.profile_signal) return;
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  if (sigaction((int)mu_options.profile_signal, &action, NULL) < 0)
    mu_log("MESH_UFFD_PROFILE_SIGNAL=%u is no signal that can be handled", mu_options.profile_signal);
}
