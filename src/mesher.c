/* SPDX-License-Identifier: Apache-2.0 */
#include "src/mesher.h"
#include "src/global_heap.h"
#include "src/log.h"
#include "src/options.h"
#include "src/pack.h"
#include "src/pass.h"
#include "src/probe.h"
#include "src/stats_page.h"
#include "src/sys.h"
#include "src/thread.h"
#include "src/thread_local_heap.h"
#include "src/validate.h"
#include "uffd/engine.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>

enum {
  TICK_MS = 100,
  EAGER_TICK_MS = 2,
  QUIET_TICKS = 2,
  IDLE_TICKS = 30,       /* without any change: sleep until woken */
  BURST_SECONDS = 60,    /* processor time is averaged over this */
  MIN_PAGES_A_PLAN = 64, /* less is not worth the barriers */
  TURN_NS = 4000000,     /* of the program's time at once, where it must stand still */
  TURN_WAIT_MS = 2000,   /* for the program to lend it; what was planned is stale then */
  MIN_BUDGET_NS = 1000000,
  START_BYTES = 8 << 20, /* smaller heaps are left alone: a thread costs more than they hold back */
  PURGE_PAGES = 16384,   /* at most so many in one go, between looks at the clock */
  COMPACT_ROUNDS = 3,
  MAX_REST_TICKS = 31,
  CALM_TICKS = 5,
  PATIENCE_TICKS = 50, /* a class that is being emptied is waited for, but not for ever */
};

struct mu_mesher_counters mu_mesher_counters;

enum { NOT_STARTED, STARTING, RUNNING, STOPPING };
enum { WANT_COMPACT = 1, WANT_TURN = 2, WANT_ENGINE = 4, WANT_PURGE = 8, WANT_STOP = 16 };

static struct {
  _Atomic uint32_t state;
  _Atomic uint32_t bell; /* futex: rung for requests and when activity resumes */
  _Atomic uint32_t asleep;
  _Atomic uint32_t asked, answered; /* requests: tickets */
  _Atomic uint32_t wanted;          /* what is asked for: WANT_* */
  _Atomic uint64_t freed;           /* by the last request answered */
  _Atomic uint32_t wants_turn;      /* the program's one thread is asked to lend us a moment */
  pthread_t thread;
  int pid;           /* of the process that this is about */
  uint32_t attempts; /* that failed */
  int64_t budget_ns; /* processor time that may be spent now */
  uint64_t last_wall, last_cpu;
  uint64_t ops_seen;
  uint32_t unchanged;
  uint32_t rest, pause; /* ticks left until meshing is tried again; of how many */
  size_t tried_with;    /* bytes that might be given back when it was last tried */
  bool deferred;        /* a class was left alone for the moment */
  uint32_t cached;      /* slots in transfer caches */
} m;

/* Where the mesher must not be; kept by children. */
static _Atomic uint32_t keeps_out, stays_away;

/* ---- reclaim -------------------------------------------------------------------------------------------------------
 */

static bool drop_one(void *start, size_t len) {
  struct mu_range range = {start, len};
  return mu_drop(&range, 1);
}

static size_t purge_extents(uint32_t tick) {
  size_t all = 0, done;
  do {
    mu_pass_lock(); /* a fork must not see an extent that is on no list */
    done = mu_extent_purge(tick, PURGE_PAGES, drop_one);
    mu_pass_unlock();
    all += done;
  } while (done >= PURGE_PAGES);
  return all;
}

/* Neighbouring spans become one range. */
static size_t ranges_of(const uint32_t *pages, uint32_t n, size_t span_bytes, struct mu_range *ranges) {
  size_t count = 0;
  for (uint32_t i = 0; i < n; i++) {
    char *start = mu_page_address(pages[i]);
    struct mu_range *last = count ? &ranges[count - 1] : NULL;
    if (last && (char *)last->start + last->len == start)
      last->len += span_bytes;
    else if (last && start + span_bytes == last->start)
      last->start = start, last->len += span_bytes;
    else
      ranges[count++] = (struct mu_range){start, span_bytes};
  }
  return count;
}

static size_t purge_empty_spans(unsigned c, uint32_t tick) {
  enum { BATCH = 512 };
  uint32_t pages[BATCH], n;
  struct mu_range ranges[BATCH];
  size_t span_bytes = (size_t)mu_classes[c].span_pages << mu_arena.page_shift, done = 0;
  do {
    mu_pass_lock();
    n = mu_empty_take(c, pages, BATCH, tick);
    if (n) {
      bool dropped = mu_drop(ranges, ranges_of(pages, n, span_bytes, ranges));
      mu_empty_return(c, pages, n, dropped);
      if (!dropped) n = 0; /* tried again when they are old enough again */
      done += n;
    }
    mu_pass_unlock();
  } while (n == BATCH);
  return done * mu_classes[c].span_pages;
}

static size_t purge(uint32_t tick) {
  size_t pages = purge_extents(tick);
  for (unsigned c = 1; c < MU_CLASSES; c++) pages += purge_empty_spans(c, tick);
  mu_count(&mu_mesher_counters.reclaimed_bytes, pages << mu_arena.page_shift);
  if (pages) MU_PROBE1(reclaimed, pages << mu_arena.page_shift);
  return pages;
}

static size_t unused_pages(void) {
  size_t pages = atomic_load_explicit(&mu_dirty_pages, memory_order_relaxed);
  for (unsigned c = 1; c < MU_CLASSES; c++) pages += (size_t)mu_class_heaps[c].touched_empty * mu_classes[c].span_pages;
  return pages;
}

/* ---- meshing -------------------------------------------------------------------------------------------------------
 */

/* ---- turns ---------------------------------------------------------------------------------------------------------
 */

/*
 * Without a barrier the program must stand still while a run is meshed: its one thread, at a call that takes the slow
 * way, waits for a moment. What is to be done is planned before.
 */
static struct {
  bool held, unlimited; /* unlimited: somebody waits for all of it */
  uint32_t ticket;
  uint64_t since;
} turn;

static void answer(uint32_t ticket) {
  atomic_store_explicit(&m.answered, ticket, memory_order_release);
  mu_futex_wake(&m.answered, INT32_MAX);
}

static void end_turn(void) {
  if (!turn.held || turn.unlimited) return;
  turn.held = false;
  answer(turn.ticket);
}

static void hold_turn(uint32_t ticket, bool unlimited) {
  turn.ticket = ticket;
  turn.unlimited = unlimited;
  turn.since = mu_now_ns();
  turn.held = true;
}

static bool is_to_stop(void) {
  return atomic_load_explicit(&m.wanted, memory_order_relaxed) & WANT_STOP;
}

/* Somebody who asks for anything else waits as well, but for that: it is left to the main loop. */
static bool wait_for_turn(void) {
  uint64_t end = mu_now_ns() + (uint64_t)TURN_WAIT_MS * 1000000;
  while (mu_now_ns() < end && !is_to_stop()) {
    uint32_t bell = atomic_load_explicit(&m.bell, memory_order_acquire);
    uint32_t asked = atomic_load_explicit(&m.asked, memory_order_acquire);
    if (asked != atomic_load_explicit(&m.answered, memory_order_relaxed)) {
      if (atomic_load_explicit(&m.wanted, memory_order_relaxed) != WANT_TURN) return false;
      atomic_fetch_and_explicit(&m.wanted, ~(uint32_t)WANT_TURN, memory_order_relaxed);
      hold_turn(asked, false);
      if (mu_program_stands_still()) return true;
      end_turn();
      return false;
    }
    atomic_store_explicit(&m.wants_turn, 1, memory_order_relaxed);
    atomic_store_explicit(&mu_mesher_listens, 1, memory_order_relaxed);
    mu_futex_wait(&m.bell, bell, (int64_t)TICK_MS * 1000000);
  }
  return false;
}

static bool take_turn(void) {
  bool taken = wait_for_turn();
  atomic_store_explicit(&m.wants_turn, 0, memory_order_relaxed);
  return taken;
}

static bool may_go_on(void) {
  mu_stats_page_write_if_due();
  if (mu_pass_paused() || is_to_stop()) return false;
  if (mu_engine_tier() <= MU_TIER_FULL_WP) return true;
  if (turn.held && (turn.unlimited || mu_now_ns() - turn.since < TURN_NS)) return true;
  end_turn();
  return take_turn();
}

static bool may_mesh(void) {
  if (!mu_options.mesh || mu_pass_paused()) return false;
  if (mu_engine_tier() == MU_TIER_UNKNOWN) mu_engine_start();
  return mu_engine_tier() != MU_TIER_FULL_WP || mu_no_pins();
}

/* While a class loses more than a fiftieth of its live slots a tick, what is packed now is too full a moment later. So
 * it is left alone until it has been calm for a while, or has been falling for too long. */
static struct {
  size_t live;
  uint32_t calm, falling; /* ticks */
} trend[MU_CLASSES];

static void watch_classes(void) {
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    size_t live = mu_class_live(&mu_class_heaps[c]);
    bool falls = live + live / 50 < trend[c].live;
    trend[c].live = live;
    trend[c].calm = falls ? 0 : trend[c].calm + 1;
    trend[c].falling = trend[c].calm > CALM_TICKS ? 0 : trend[c].falling + 1;
  }
}

static bool is_being_emptied(unsigned c) {
  return trend[c].calm < CALM_TICKS && trend[c].falling < PATIENCE_TICKS;
}

static size_t mesh(const struct mu_pass_policy *policy) {
  size_t pages = 0;
  if (!may_mesh()) return 0;
  mu_mapping_budget_refresh();
  mu_pass_choose_units();
  for (unsigned c = 1; c < MU_CLASSES; c++)
    if (!is_being_emptied(c) || policy->ignore_backoff)
      pages += mu_pass_class(c, policy);
    else
      m.deferred = true;
  end_turn();
  mu_count(&mu_mesher_counters.freed_bytes, pages << mu_arena.page_shift);
  if (mu_options.validate) mu_heap_validate(false);
  return pages;
}

/* An estimate without any system call: bytes of free slots in spans that hold live ones. */
static size_t might_give_back(void) {
  size_t bytes = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    const struct mu_class_heap *h = &mu_class_heaps[c];
    if (mu_classes[c].meshable) bytes += (h->used_spans * mu_classes[c].slots - h->live_slots) * mu_classes[c].size;
  }
  return bytes;
}

/* What did not pay is tried again later and later, unless there is more to gain by now. */
static bool worth_a_try(void) {
  size_t bytes = might_give_back(), least = mu_options.eager ? 1 : MIN_PAGES_A_PLAN;
  if (bytes >> mu_arena.page_shift < least) {
    m.rest = m.pause = 0; /* there is nothing to wait for */
    return false;
  }
  if (mu_options.eager || bytes > m.tried_with + m.tried_with / 8) m.rest = m.pause = 0;
  if (m.rest) {
    m.rest--;
    return false;
  }
  m.tried_with = bytes;
  return true;
}

/* Slots that no thread needs are in nobody's way. Under the pass lock, as whatever the mesher changes: a raw fork waits
 * for nothing else, and its child would go on with a class that is half changed. */
static uint32_t trim_caches(bool everything) {
  uint32_t left = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++)
    if (mu_class_heaps[c].cache.count) {
      mu_pass_lock();
      left += mu_cache_trim(c, everything);
      mu_pass_unlock();
    }
  return left;
}

static size_t purge_now(void) {
  trim_caches(true);
  return purge(atomic_load_explicit(&mu_tick, memory_order_relaxed)) << mu_arena.page_shift;
}

static size_t compact_fully(void) {
  struct mu_pass_policy policy = {.min_pages = 1, .ignore_backoff = true, .may_go_on = may_go_on};
  uint32_t now = atomic_load_explicit(&mu_tick, memory_order_relaxed);
  if (mu_pass_paused()) return 0;
  trim_caches(true);
  size_t pages = purge(now), got;
  for (int round = 0; round < COMPACT_ROUNDS; round++) {
    pages += got = mesh(&policy);
    if (!got) break;
  }
  return (pages + purge(now)) << mu_arena.page_shift;
}

/* ---- the thread ----------------------------------------------------------------------------------------------------
 */

static uint64_t ops_so_far(void) {
  uint64_t ops = atomic_load_explicit(&mu_large_pages, memory_order_relaxed);
  for (unsigned c = 1; c < MU_CLASSES; c++) ops += mu_class_heaps[c].ops;
  return ops;
}

/* At most cpu_percent of one core, averaged over BURST_SECONDS. */
static void earn_budget(void) {
  uint64_t wall = mu_now_ns(), cpu = mu_thread_cpu_ns();
  int64_t most = (int64_t)BURST_SECONDS * 10000000 * mu_options.cpu_percent;
  m.budget_ns += (int64_t)((wall - m.last_wall) * mu_options.cpu_percent / 100) - (int64_t)(cpu - m.last_cpu);
  if (m.budget_ns > most) m.budget_ns = most;
  m.last_wall = wall;
  m.last_cpu = cpu;
}

static bool mesh_as_it_pays(void) {
  size_t ns = m.budget_ns > MIN_BUDGET_NS ? (size_t)m.budget_ns : MIN_BUDGET_NS;
  struct mu_pass_policy policy = {.quiet_ticks = mu_options.eager ? 0 : QUIET_TICKS,
                                  .min_pages = mu_options.eager ? 1 : MIN_PAGES_A_PLAN,
                                  .deadline_ns = mu_thread_cpu_ns() + ns,
                                  .ignore_backoff = mu_options.eager,
                                  .may_go_on = may_go_on};
  return mesh(&policy) > 0;
}

static MU_INITIAL_EXEC __thread bool drops_caps; /* the library itself does: nobody need leave for that */

static bool drop_caps(void) {
  drops_caps = true;
  bool dropped = mu_caps_drop_ptrace();
  drops_caps = false;
  return dropped;
}

/* The capability is used at once and given up. */
static void open_and_drop(void) {
  if (mu_engine_tier() == MU_TIER_UNKNOWN) mu_engine_start();
  drop_caps();
}

static void answer_requests(void) {
  uint32_t asked = atomic_load_explicit(&m.asked, memory_order_acquire);
  if (asked == atomic_load_explicit(&m.answered, memory_order_relaxed)) return;
  uint32_t wanted = atomic_fetch_and_explicit(&m.wanted, WANT_STOP, memory_order_acq_rel);
  if (wanted & WANT_ENGINE) open_and_drop();
  if (wanted & WANT_PURGE) atomic_store_explicit(&m.freed, purge_now(), memory_order_relaxed);
  if (wanted & WANT_COMPACT) {
    if (mu_engine_tier() == MU_TIER_UNKNOWN && mu_options.mesh) mu_engine_start();
    if (mu_engine_tier() > MU_TIER_FULL_WP && mu_program_stands_still()) hold_turn(asked, true);
    atomic_store_explicit(&m.freed, compact_fully(), memory_order_relaxed);
    turn.held = turn.unlimited = false;
  }
  answer(asked);
}

static void tick(void) {
  uint32_t now = atomic_fetch_add_explicit(&mu_tick, 1, memory_order_relaxed) + 1;
  uint32_t decay = mu_options.eager ? 1 : mu_options.decay_ms / TICK_MS;
  earn_budget();
  watch_classes();
  m.cached = trim_caches(false);
  if (unused_pages()) purge(now - decay);
  if ((m.budget_ns <= 0 && !mu_options.eager) || !worth_a_try()) return;
  m.deferred = false;
  bool paid = mesh_as_it_pays();
  m.pause = paid || m.deferred ? 0 : (uint32_t)mu_min(m.pause * 2 + 1, MAX_REST_TICKS);
  m.rest = m.pause;
}

/* How long to sleep: for ever when nothing has happened for a while and nothing is left to give back. */
static int64_t nap(void) {
  uint64_t ops = ops_so_far();
  m.unchanged = ops == m.ops_seen ? m.unchanged + 1 : 0;
  m.ops_seen = ops;
  bool waiting = m.rest || m.budget_ns <= 0 || m.cached || unused_pages();
  if (m.unchanged > IDLE_TICKS && !waiting) return -1;
  return (int64_t)(mu_options.eager ? EAGER_TICK_MS : TICK_MS) * 1000000;
}

static void *run(void *unused) {
  (void)unused;
  mu_thread_settle("mesh-uffd");
  mu_engine_own_descriptors();
  m.last_wall = mu_now_ns();
  m.last_cpu = mu_thread_cpu_ns();
  m.budget_ns = (int64_t)BURST_SECONDS * 10000000 * mu_options.cpu_percent;
  for (;;) {
    uint32_t bell = atomic_load_explicit(&m.bell, memory_order_acquire);
    if (is_to_stop()) break;
    answer_requests();
    tick();
    mu_stats_page_write();
    int64_t ns = nap();
    if (ns < 0) {
      mu_packs_seal_all(); /* an open one keeps its memory when nobody maps it any more */
      mu_reclaim_idle();
      mu_stats_page_write();
      atomic_store_explicit(&mu_mesher_listens, 1, memory_order_seq_cst);
      if (ops_so_far() != m.ops_seen) ns = 0;
    }
    if (ns) mu_futex_wait(&m.bell, bell, ns);
  }
  mu_packs_seal_all();
  mu_engine_stop();
  mu_stats_page_left_alone();
  return NULL;
}

static void ring_bell(void) {
  atomic_fetch_add_explicit(&m.bell, 1, memory_order_release);
  mu_futex_wake(&m.bell, 1);
}

static bool is_running(void) {
  /* seq_cst: see mu_mesher_leave */
  return atomic_load_explicit(&m.state, memory_order_seq_cst) == RUNNING && mu_pid() == m.pid;
}

/* Hands a request over and waits, with signals blocked, until it has been carried out. */
static void request(uint32_t what) {
  sigset_t all, before;
  int saved = errno;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  atomic_fetch_or_explicit(&m.wanted, what, memory_order_relaxed);
  uint32_t ticket = atomic_fetch_add_explicit(&m.asked, 1, memory_order_seq_cst) + 1, seen;
  ring_bell();
  while ((int32_t)((seen = atomic_load_explicit(&m.answered, memory_order_acquire)) - ticket) < 0 && is_running())
    mu_futex_wait(&m.answered, seen, -1);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = saved;
}

/* The mesher listens, and something has changed: called by whoever changed it, without locks. */
static void activity(void) {
  if (mu_pid() != m.pid) return;
  if (!atomic_exchange_explicit(&mu_mesher_listens, 0, memory_order_relaxed)) return;
  if (atomic_exchange_explicit(&m.wants_turn, 0, memory_order_relaxed))
    request(WANT_TURN);
  else
    ring_bell();
}

enum { RETRY_EVERY = 64 }; /* calls to start, after one that failed */

/* Not in a vfork child, which has our memory but is another process. */
static void start(void) {
  uint32_t not_started = NOT_STARTED;
  if (atomic_load_explicit(&m.state, memory_order_relaxed) != NOT_STARTED || mu_pid() != m.pid) return;
  if (atomic_load_explicit(&stays_away, memory_order_relaxed)) return;
  if (m.attempts && m.attempts++ % RETRY_EVERY) return;
  if (!atomic_compare_exchange_strong_explicit(&m.state, &not_started, STARTING, memory_order_seq_cst,
                                               memory_order_relaxed))
    return;
  if (atomic_load_explicit(&keeps_out, memory_order_seq_cst)) {
    atomic_store_explicit(&m.state, NOT_STARTED, memory_order_release);
    return;
  }
  if (mu_thread_create(&m.thread, run) == 0) {
    atomic_store_explicit(&m.state, RUNNING, memory_order_release);
    return;
  }
  m.attempts = 1;
  atomic_store_explicit(&m.state, NOT_STARTED, memory_order_release);
}

static void grown(void) {
  if (MU_LIKELY(atomic_load_explicit(&m.state, memory_order_relaxed) != NOT_STARTED)) return;
  if (mu_options.eager || mu_arena_limit() << mu_arena.page_shift >= START_BYTES) start();
}

void mu_mesher_init(void) {
  m.pid = mu_pid();
  mu_on_activity = activity;
  mu_on_growth = grown;
  /* Not before the program allocates: who brings a malloc of its own, and counts its threads, gets none of ours. */
  if (!mu_options.eager) grown();
  if (!mu_options.drop_caps) return;
  start();
  if (is_running()) request(WANT_ENGINE);
  if (!drop_caps()) mu_log("MESH_UFFD_DROP_CAPS: CAP_SYS_PTRACE could not be dropped");
}

/* ---- requests ------------------------------------------------------------------------------------------------------
 */

/* Another thread may be about to. */
static void start_and_wait(void) {
  start();
  while (atomic_load_explicit(&m.state, memory_order_acquire) == STARTING && mu_pid() == m.pid)
    mu_futex_wait(&m.state, STARTING, 1000000);
}

static size_t give_back(uint32_t what) {
  if (!mu_heap_ready()) return 0;
  start_and_wait();
  if (!is_running()) return 0;
  mu_thread_flush();
  request(what);
  return atomic_load_explicit(&m.freed, memory_order_relaxed);
}

const char *mu_mesher_why(void) {
  bool refused = m.attempts && atomic_load_explicit(&m.state, memory_order_relaxed) != RUNNING;
  return refused ? "no thread can be started, so nothing is meshed or given back" : mu_engine_why();
}

size_t mu_mesher_compact(void) {
  return give_back(WANT_COMPACT);
}

size_t mu_mesher_purge(void) {
  return give_back(WANT_PURGE);
}

/* ---- out of the way
 * --------------------------------------------------------------------------------------------------
 */

/* False when there is none to stop. What it was asked and has not done is answered. */
static bool begin_to_stop(void) {
  for (unsigned i = 0;; i++) {
    uint32_t state = RUNNING;
    if (atomic_compare_exchange_strong_explicit(&m.state, &state, STOPPING, memory_order_seq_cst, memory_order_seq_cst))
      return true;
    if (state == NOT_STARTED) return false;
    mu_wait_a_little(&m.state, state, i); /* somebody else starts or stops it, perhaps on this processor, less urgent */
  }
}

static void stop(void) {
  sigset_t all, before;
  int saved = errno, cancel;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
  if (begin_to_stop()) {
    atomic_fetch_or_explicit(&m.wanted, WANT_STOP, memory_order_relaxed);
    ring_bell();
    /* Who asks from now on sees that it is not running; who asked before is counted, and let go. */
    answer(atomic_load_explicit(&m.asked, memory_order_seq_cst));
    pthread_join(m.thread, NULL);
    atomic_store_explicit(&m.wanted, 0, memory_order_relaxed);
    atomic_store_explicit(&m.wants_turn, 0, memory_order_relaxed);
    memset(&turn, 0, sizeof turn);
    answer(atomic_load_explicit(&m.asked, memory_order_seq_cst));
    atomic_store_explicit(&m.state, NOT_STARTED, memory_order_seq_cst);
  }
  pthread_setcancelstate(cancel, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = saved;
}

void mu_mesher_leave(void) {
  /* seq_cst: either start sees this, or this sees that it is starting */
  atomic_fetch_add_explicit(&keeps_out, 1, memory_order_seq_cst);
  if (mu_pid() == m.pid && !mu_thread_is_ours() && !drops_caps) stop();
}

void mu_mesher_may_start(void) {
  atomic_fetch_sub_explicit(&keeps_out, 1, memory_order_seq_cst);
}

void mu_mesher_stay_away(void) {
  atomic_store_explicit(&stays_away, 1, memory_order_relaxed);
}

/* In a forked child there is no mesher. */
void mu_mesher_forget(void) {
  mu_engine_forget();
  mu_packs_forget();
  memset(&m, 0, sizeof m);
  memset(&turn, 0, sizeof turn);
  atomic_store_explicit(&keeps_out, 0, memory_order_relaxed);
  m.pid = mu_pid();
  atomic_store_explicit(&mu_mesher_listens, 0, memory_order_relaxed);
  mu_stats_page_left_alone();
}
