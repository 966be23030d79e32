/* SPDX-License-Identifier: Apache-2.0 */
#include "src/mesher.h"
#include "src/global_heap.h"
#include "src/headroom.h"
#include "src/huge.h"
#include "src/log.h"
#include "src/options.h"
#include "src/pacing.h"
#include "src/pack.h"
#include "src/pass.h"
#include "src/pressure.h"
#include "src/profile.h"
#include "src/reclaim.h"
#include "src/sandbox.h"
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
  IDLE_TICKS = 30,        /* without any change: the program is at rest */
  MIN_PAGES_A_PLAN = 64,  /* less is not worth the barriers */
  REST_PAGES_A_PLAN = 16, /* of a program at rest, where they delay nobody */
  TURN_NS = 4000000,      /* of the program's time at once, where it must stand still */
  TURN_WAIT_MS = 2000,    /* for the program to lend it; what was planned is stale then */
  MIN_BUDGET_NS = 1000000,
  LOOK_TICKS = 64,       /* how often settings of the system are read again */
  START_BYTES = 8 << 20, /* smaller heaps are left alone: a thread costs more than they hold back */
  COMPACT_ROUNDS = 3,
  CALM_TICKS = 5,
  PATIENCE_TICKS = 50, /* a class that is being emptied is waited for, but not for ever */
  DECAY_LOOKS = 64,    /* at a program at rest, within the decay time */
  LONG_LIFE_S = 60,
  FORKED_MAPPING_NS = 600, /* what a fork copies for each mapping that we made */
  RING_OP_NS = 10000,      /* a worker's time for an operation, on average over a minute's work */
};

struct mu_mesher_counters mu_mesher_counters;

enum { NOT_STARTED, STARTING, RUNNING, STOPPING };
enum { WANT_COMPACT = 1, WANT_TURN = 2, WANT_ENGINE = 4, WANT_PURGE = 8, WANT_STOP = 16, WANT_ROOM = 32 };

MU_EARLY static struct {
  _Atomic uint32_t state;
  _Atomic uint32_t bell;            /* futex: rung for requests and when activity resumes */
  _Atomic uint32_t asked, answered; /* requests: tickets */
  _Atomic uint32_t wanted;          /* what is asked for: WANT_* */
  _Atomic uint64_t freed;           /* by the last request answered */
  _Atomic uint32_t wants_turn;      /* the program's one thread is asked to lend us a moment */
  _Atomic uint32_t standing;        /* it does: STANDS_* */
  _Atomic uint32_t beat;            /* counts on while the mesher gets anywhere */
  _Atomic uint32_t deaf;            /* it did not answer in time: nobody waits for it until it answers again */
  pthread_t thread;
  uint32_t attempts; /* that failed */
  uint64_t began;    /* ns */
  uint64_t ticked;   /* ns: when the tick that it is now began */
  uint64_t ops_seen;
  uint32_t unchanged; /* ticks */
  uint32_t forks_seen;
  bool deferred;   /* a class was left alone for the moment */
  uint32_t cached; /* slots in transfer caches */
  struct mu_pacing pacing;
  _Atomic uint32_t pressed;       /* the kernel has said that memory is short */
  _Atomic uint32_t limited;       /* a control group has a limit: who grows the heap counts */
  _Atomic int64_t may_grow;       /* by so many bytes before somebody has to ask */
  uint64_t relieved, relief_rest; /* ns: when memory was short last; for how long it is not tried again */
  uint64_t purged;                /* ns: when what is unused went last for that reason */
  uint64_t until;                 /* ns: when somebody who waits has waited long enough; 0: nobody does */
} m;

/* Where the mesher must not be; kept by children. */
static _Atomic uint32_t keeps_out, stays_away;
MU_EARLY static int home; /* the process: not that of a vfork child, which has our memory */

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

enum { STANDS_NOT, STANDS, STANDS_NO_MORE };

static void answer(uint32_t ticket) {
  atomic_store_explicit(&m.deaf, 0, memory_order_relaxed);
  atomic_store_explicit(&m.answered, ticket, memory_order_release);
  mu_futex_wake(&m.answered, INT32_MAX);
}

/* From here on who has asked does not go on before he is answered. False: he has given up, or something else might
 * write to the program's memory. */
static bool make_stand(void) {
  uint32_t not_yet = STANDS_NOT;
  /* acquire and release: what either did before, the other sees */
  return atomic_compare_exchange_strong_explicit(&m.standing, &not_yet, STANDS, memory_order_acq_rel,
                                                 memory_order_acquire) &&
         mu_program_stands_still();
}

static void let_go(void) {
  uint32_t stands = STANDS;
  atomic_compare_exchange_strong_explicit(&m.standing, &stands, STANDS_NOT, memory_order_acq_rel, memory_order_relaxed);
}

static void end_turn(void) {
  if (!turn.held || turn.unlimited) return;
  turn.held = false;
  let_go();
  answer(turn.ticket);
}

static bool hold_turn(uint32_t ticket, bool unlimited) {
  turn.held = make_stand();
  if (!turn.held) let_go();
  turn.ticket = ticket;
  turn.unlimited = unlimited;
  turn.since = mu_now_ns();
  return turn.held;
}

static bool is_to_stop(void) {
  return atomic_load_explicit(&m.wanted, memory_order_relaxed) & WANT_STOP;
}

/* Somebody who asks for anything else waits as well, but for that: it is left to the main loop. */
static bool wait_for_turn(void) {
  uint64_t now, end = mu_now_ns() + (uint64_t)TURN_WAIT_MS * 1000000;
  while ((now = mu_now_ns()) < end && !is_to_stop()) {
    uint32_t bell = atomic_load_explicit(&m.bell, memory_order_acquire);
    uint32_t asked = atomic_load_explicit(&m.asked, memory_order_acquire);
    if (asked != atomic_load_explicit(&m.answered, memory_order_relaxed)) {
      if (atomic_load_explicit(&m.wanted, memory_order_relaxed) != WANT_TURN) return false;
      atomic_fetch_and_explicit(&m.wanted, ~(uint32_t)WANT_TURN, memory_order_relaxed);
      if (hold_turn(asked, false)) return true;
      answer(asked);
      return false;
    }
    atomic_store_explicit(&m.wants_turn, 1, memory_order_relaxed);
    atomic_store_explicit(&mu_mesher_listens, 1, memory_order_relaxed);
    mu_futex_wait(&m.bell, bell, (int64_t)(end - now));
  }
  return false;
}

static bool take_turn(void) {
  bool taken = wait_for_turn();
  atomic_store_explicit(&m.wants_turn, 0, memory_order_relaxed);
  return taken;
}

static void beat(void) {
  atomic_fetch_add_explicit(&m.beat, 1, memory_order_relaxed);
}

static bool may_go_on(void) {
  beat();
  mu_stats_page_write_if_due();
  if (mu_pass_paused() || is_to_stop() || (m.until && mu_now_ns() > m.until)) return false;
  if (mu_engine_tier() <= MU_TIER_FULL_WP) return true;
  if (turn.held && (turn.unlimited || mu_now_ns() - turn.since < TURN_NS)) return true;
  end_turn();
  return take_turn();
}

/* Under the pass lock: threads are made and ended with locks of libc's, which must not be held in a forked child. */
static void start_engine(void) {
  if (mu_engine_tier() != MU_TIER_UNKNOWN) return;
  mu_pass_lock();
  mu_engine_start();
  mu_pass_unlock();
}

static bool may_mesh(void) {
  if (!mu_options.mesh || mu_pass_paused()) return false;
  start_engine();
  if (mu_engine_is_broken()) return false;
  return mu_engine_tier() != MU_TIER_FULL_WP || mu_no_pins();
}

/* While a class loses more than a fiftieth of its live slots a tick, what is packed now is too full a moment later. So
 * it is left alone until it has been calm for a while, or has been falling for too long. */
static struct {
  size_t live;
  uint32_t calm, falling; /* ticks */
} trend[MU_CLASSES];

MU_RACY static void watch_classes(uint32_t ticks) {
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    size_t live = mu_class_live(&mu_class_heaps[c]);
    bool falls = live + live / 50 < trend[c].live;
    trend[c].live = live;
    trend[c].calm = falls ? 0 : trend[c].calm + ticks;
    trend[c].falling = trend[c].calm > CALM_TICKS ? 0 : trend[c].falling + ticks;
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
MU_RACY static size_t might_give_back(void) {
  size_t bytes = 0;
  for (unsigned c = 1; c < MU_CLASSES; c++) {
    const struct mu_class_heap *h = &mu_class_heaps[c];
    if (mu_classes[c].meshable) bytes += (h->used_spans * mu_classes[c].slots - h->live_slots) * mu_classes[c].size;
  }
  return bytes;
}

static size_t purge_now(void) {
  mu_reclaim_cached(true);
  return mu_reclaim_all() << mu_arena.page_shift;
}

static size_t compact_fully(void) {
  struct mu_pass_policy policy = {.min_pages = 1, .ignore_backoff = true, .may_go_on = may_go_on};
  if (mu_pass_paused()) return 0;
  mu_reclaim_cached(true);
  size_t pages = mu_reclaim_all(), got;
  for (int round = 0; round < COMPACT_ROUNDS; round++) {
    pages += got = mesh(&policy);
    if (!got) break;
  }
  return (pages + mu_reclaim_all()) << mu_arena.page_shift;
}

/* ---- when memory is short ------------------------------------------------------------------------------------------
 */

enum {
  NEAR = 8,              /* less room than an eighth of the limit is short */
  STEP = 64,             /* a 64th of it may be taken without asking, however short it is */
  HARD_MIN_PAGES = 8,    /* less is not worth even that */
  RELIEF_NS = 500000000, /* of somebody's time, who waits for it */
};
static const uint64_t FIRST_REST_NS = 1000000000, MOST_REST_NS = 64000000000;

/* Everything that can be had, whatever was put off: a minute's worth of processor time more than there is. */
static size_t relieve(void) {
  struct mu_pass_policy hard = {.min_pages = HARD_MIN_PAGES,
                                .ignore_backoff = true,
                                .deadline_ns = mu_thread_cpu_ns() + mu_pacing_with_credit(&m.pacing),
                                .may_go_on = may_go_on};
  mu_reclaim_cached(true);
  size_t pages = mu_reclaim_all();
  pages += mesh(&hard);
  return pages + mu_reclaim_all();
}

/* Somebody who grows the heap asks when half of what is left is used up. */
static bool is_short(void) {
  struct mu_headroom h;
  bool limited = mu_headroom_measure(&h);
  if (limited) atomic_store_explicit(&m.may_grow, (int64_t)mu_max(h.room / 2, h.limit / STEP), memory_order_relaxed);
  atomic_store_explicit(&m.limited, limited, memory_order_relaxed);
  return limited && h.room < h.limit / NEAR;
}

/* What did not help is tried again later and later; but what has become unused since goes at once. */
static void relieve_if_pressed(void) {
  uint64_t now = mu_now_ns();
  bool pressed = atomic_exchange_explicit(&m.pressed, 0, memory_order_relaxed);
  pressed |= mu_pressure_felt(now);
  pressed |= is_short();
  if (!pressed || now - m.purged < FIRST_REST_NS) return;
  if (now - m.relieved < m.relief_rest) {
    mu_reclaim_all();
    m.purged = mu_now_ns();
    return;
  }
  bool helped = relieve() >= MIN_PAGES_A_PLAN;
  m.relief_rest = helped ? FIRST_REST_NS : mu_min(mu_max(m.relief_rest * 2, FIRST_REST_NS), MOST_REST_NS);
  m.relieved = m.purged = mu_now_ns();
}

static void make_room(void) {
  if (!is_short()) return;
  m.until = mu_now_ns() + RELIEF_NS;
  relieve();
  m.until = 0;
  is_short();
}

/* ---- the thread ----------------------------------------------------------------------------------------------------
 */

MU_RACY static uint64_t ops_so_far(void) {
  uint64_t ops = atomic_load_explicit(&mu_large_pages, memory_order_relaxed);
  for (unsigned c = 1; c < MU_CLASSES; c++) ops += mu_class_heaps[c].ops;
  return ops;
}

/* What stood in the way and may go away by itself: somebody touched it, or it is shared with a child. */
static uint64_t hindrances(void) {
  const struct mu_mesher_counters *k = &mu_mesher_counters;
  return atomic_load_explicit(&k->refused_busy, memory_order_relaxed) +
         atomic_load_explicit(&k->refused_shared, memory_order_relaxed);
}

static bool is_at_rest(void) {
  return m.unchanged > IDLE_TICKS;
}

static enum mu_outcome mesh_as_it_pays(void) {
  size_t ns = m.pacing.budget_ns > MIN_BUDGET_NS ? (size_t)m.pacing.budget_ns : MIN_BUDGET_NS;
  struct mu_pass_policy policy = {.quiet_ticks = mu_options.eager ? 0 : QUIET_TICKS,
                                  .min_pages = mu_options.eager ? 1
                                               : is_at_rest()   ? REST_PAGES_A_PLAN
                                                                : MIN_PAGES_A_PLAN,
                                  .deadline_ns = mu_thread_cpu_ns() + ns,
                                  .ignore_backoff = mu_options.eager || is_at_rest(), /* then it is tried seldom */
                                  .may_go_on = may_go_on};
  uint64_t before = hindrances();
  m.deferred = false;
  if (mesh(&policy)) return MU_PAID;
  if (m.deferred || mu_options.eager) return MU_PUT_OFF;
  return hindrances() != before ? MU_REFUSED : MU_FUTILE;
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
  start_engine();
  drop_caps();
}

static void answer_requests(void) {
  uint32_t asked = atomic_load_explicit(&m.asked, memory_order_acquire);
  if (asked == atomic_load_explicit(&m.answered, memory_order_relaxed)) return;
  uint32_t wanted = atomic_fetch_and_explicit(&m.wanted, WANT_STOP, memory_order_acq_rel);
  if (wanted & WANT_ENGINE) open_and_drop();
  if (wanted & WANT_PURGE) atomic_store_explicit(&m.freed, purge_now(), memory_order_relaxed);
  if (wanted & WANT_COMPACT) {
    if (mu_options.mesh) start_engine();
    if (mu_engine_tier() > MU_TIER_FULL_WP) hold_turn(asked, true);
    atomic_store_explicit(&m.freed, compact_fully(), memory_order_relaxed);
    turn.held = turn.unlimited = false;
    let_go();
  }
  if (wanted & WANT_ROOM) {
    if (mu_engine_tier() > MU_TIER_FULL_WP) hold_turn(asked, true);
    make_room();
    turn.held = turn.unlimited = false;
    let_go();
  }
  answer(asked);
}

static uint64_t tick_ns(void) {
  return (uint64_t)(mu_options.eager ? EAGER_TICK_MS : TICK_MS) * 1000000;
}

/* How many ticks have passed since the last call; the clock goes on by them. */
static uint32_t ticks_passed(void) {
  uint64_t n = (mu_now_ns() - m.ticked) / tick_ns();
  m.ticked += n * tick_ns();
  return (uint32_t)n;
}

/* What others spend for us counts as ours: each fork copies our mappings, while the program waits, so who forks often
 * is meshed less; and the kernel's workers carry out what goes by ring. */
static void pay_for_others(void) {
  static uint64_t ops_seen;
  uint64_t ops = atomic_load_explicit(&mu_engine_counters.ops_ring, memory_order_relaxed);
  mu_pacing_charge(&m.pacing, (ops - ops_seen) * RING_OP_NS);
  ops_seen = ops;
  uint32_t forks = atomic_load_explicit(&mu_forks, memory_order_relaxed), more = forks - m.forks_seen;
  uint64_t mappings = atomic_load_explicit(&mu_mesh_mappings, memory_order_relaxed);
  m.forks_seen = forks;
  if (more) mu_pacing_charge(&m.pacing, more * mappings * FORKED_MAPPING_NS);
}

/* A quarter at least: what takes longer than a tick leaves room for others. */
static int64_t rest_of_tick(void) {
  uint64_t passed = mu_now_ns() - m.ticked, least = tick_ns() / 4;
  return (int64_t)(passed + least < tick_ns() ? tick_ns() - passed : least);
}

static bool watch_activity(uint32_t ticks) {
  uint64_t ops = ops_so_far();
  bool active = ops != m.ops_seen;
  m.unchanged = active ? 0 : m.unchanged + ticks;
  m.ops_seen = ops;
  return active;
}

static void tick(uint32_t ticks) {
  uint32_t now = atomic_fetch_add_explicit(&mu_tick, ticks, memory_order_relaxed) + ticks;
  bool active = watch_activity(ticks);
  if (now / LOOK_TICKS != (now - ticks) / LOOK_TICKS) mu_huge_look();
  pay_for_others();
  mu_pacing_earn(&m.pacing, mu_now_ns(), mu_options.eager ? m.pacing.last_cpu : mu_thread_cpu_ns());
  watch_classes(ticks);
  m.cached = mu_reclaim_cached(false);
  mu_reclaim_old();
  relieve_if_pressed();
  size_t least = (size_t)(mu_options.eager ? 1 : MIN_PAGES_A_PLAN) << mu_arena.page_shift;
  if (mu_pacing_try(&m.pacing, now, might_give_back(), least, active))
    mu_pacing_tried(&m.pacing, now, mesh_as_it_pays(), is_at_rest());
}

/* How long to sleep, ns. Of a program at rest only what is still to be done is waited for; less than 0: nothing. */
static int64_t nap(void) {
  if (!is_at_rest() || m.cached) return (int64_t)tick_ns();
  uint64_t ns = UINT64_MAX, decay = (uint64_t)mu_options.decay_ms * 1000000 / DECAY_LOOKS;
  if (mu_reclaim_waits()) ns = mu_max(decay, tick_ns());
  if (!m.pacing.done) {
    int32_t ticks = (int32_t)(m.pacing.next - atomic_load_explicit(&mu_tick, memory_order_relaxed));
    uint64_t next = (uint64_t)(ticks > 1 ? ticks : 1) * tick_ns();
    ns = mu_min(ns, mu_max(next, mu_pacing_until_spend(&m.pacing)));
  }
  return ns == UINT64_MAX ? -1 : (int64_t)ns;
}

static void ring_bell(void) {
  atomic_fetch_add_explicit(&m.bell, 1, memory_order_release);
  mu_futex_wake(&m.bell, 1);
}

/* By the fault thread. */
static void pressed(void) {
  atomic_store_explicit(&m.pressed, 1, memory_order_relaxed);
  ring_bell();
}

/* Only where it may help more than it costs at the end: unused pages wait to go back, or the process lives long. */
static void watch_pressure(void) {
  bool full = mu_engine_tier() == MU_TIER_FULL || mu_engine_tier() == MU_TIER_FULL_WP;
  if (full && (mu_reclaim_waits() || mu_now_ns() - m.began > (uint64_t)LONG_LIFE_S * 1000000000))
    mu_pressure_watch(pressed);
}

/* For longer than a tick: until then nothing is held that is only worth having while there is work. */
static void sleep_until_rung(uint32_t bell, int64_t ns) {
  watch_pressure();
  mu_pass_lock();
  mu_packs_seal_all(); /* an open one keeps its memory when nobody maps it any more */
  mu_pass_unlock();
  mu_reclaim_idle();
  mu_stats_page_write();
  atomic_store_explicit(&mu_mesher_listens, 1, memory_order_seq_cst);
  if (ops_so_far() == m.ops_seen) mu_futex_wait(&m.bell, bell, ns);
  atomic_store_explicit(&mu_mesher_listens, 0, memory_order_relaxed);
}

static void *run(void *unused) {
  (void)unused;
  mu_thread_settle("mesh-uffd");
  mu_engine_own_descriptors();
  mu_huge_look();
  m.began = mu_now_ns();
  m.ticked = m.began - tick_ns();
  mu_pacing_begin(&m.pacing, mu_options.cpu_percent, mu_now_ns(), mu_thread_cpu_ns());
  for (;;) {
    uint32_t bell = atomic_load_explicit(&m.bell, memory_order_acquire), ticks;
    if (is_to_stop()) break;
    beat();
    answer_requests();
    mu_profile_answer();
    if ((ticks = ticks_passed())) tick(ticks);
    mu_stats_page_write();
    int64_t ns = nap();
    if (ns == (int64_t)tick_ns())
      mu_futex_wait(&m.bell, bell, rest_of_tick());
    else
      sleep_until_rung(bell, ns);
  }
  mu_pass_lock();
  mu_packs_seal_all();
  mu_engine_stop();
  mu_pass_unlock();
  mu_pressure_forget();
  mu_headroom_forget();
  mu_stats_page_left_alone();
  return NULL;
}

static bool is_running(void) {
  /* seq_cst: see mu_mesher_leave */
  return atomic_load_explicit(&m.state, memory_order_seq_cst) == RUNNING && mu_pid() == home;
}

bool mu_mesher_is_running(void) {
  return is_running();
}
void mu_mesher_look_up(void) {
  ring_bell();
}

enum { ANSWER_MS = 1000, WORK_MS = 10000, LOOK_MS = 100 };

/* Who has waited for so long without any sign goes on. Not where the mesher relies on it that he does not. */
static bool gives_up(void) {
  uint32_t not_yet = STANDS_NOT;
  if (!atomic_compare_exchange_strong_explicit(&m.standing, &not_yet, STANDS_NO_MORE, memory_order_acq_rel,
                                               memory_order_acquire) &&
      not_yet == STANDS)
    return false;
  atomic_store_explicit(&m.deaf, 1, memory_order_relaxed);
  return true;
}

static void wait_for_answer(uint32_t ticket, unsigned patience_ms) {
  uint32_t seen, beat = 0, now_beat;
  uint64_t since = mu_now_ns(), now;
  while ((int32_t)((seen = atomic_load_explicit(&m.answered, memory_order_acquire)) - ticket) < 0 && is_running()) {
    now = mu_now_ns();
    now_beat = atomic_load_explicit(&m.beat, memory_order_relaxed);
    if (now_beat != beat) since = now;
    beat = now_beat;
    if (now - since >= patience_ms * 1000000ULL && gives_up()) return;
    mu_futex_wait(&m.answered, seen, (int64_t)LOOK_MS * 1000000);
  }
}

/*
 * Hands a request over and waits, with signals blocked, until it has been carried out. A mesher that gives no sign of
 * life is not waited for: it may be stopped, or not get a processor.
 */
static void request(uint32_t what) {
  sigset_t all, before;
  int saved = errno;
  bool work = what & (WANT_COMPACT | WANT_PURGE | WANT_ENGINE);
  if (!work && atomic_load_explicit(&m.deaf, memory_order_relaxed)) return;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  uint32_t no_more = STANDS_NO_MORE;
  atomic_compare_exchange_strong_explicit(&m.standing, &no_more, STANDS_NOT, memory_order_acq_rel,
                                          memory_order_relaxed);
  atomic_fetch_or_explicit(&m.wanted, what, memory_order_relaxed);
  uint32_t ticket = atomic_fetch_add_explicit(&m.asked, 1, memory_order_seq_cst) + 1;
  ring_bell();
  wait_for_answer(ticket, work ? WORK_MS : ANSWER_MS);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  errno = saved;
}

/* The mesher listens, and something has changed: called by whoever changed it, without locks. */
MU_AT_START static void activity(void) {
  if (mu_pid() != home) return;
  if (!atomic_exchange_explicit(&mu_mesher_listens, 0, memory_order_relaxed)) return;
  if (atomic_exchange_explicit(&m.wants_turn, 0, memory_order_relaxed))
    request(WANT_TURN);
  else
    ring_bell();
}

enum { RETRY_EVERY = 64 }; /* calls to start, after one that failed */

/* Asked once: a filter that is set later is seen when it is set. */
static bool would_be_killed(void) {
  static bool asked;
  if (asked) return false;
  asked = true;
  return mu_sandbox_kills();
}

/* Not in a vfork child, which has our memory but is another process. */
static void start(void) {
  uint32_t not_started = NOT_STARTED;
  if (atomic_load_explicit(&m.state, memory_order_relaxed) != NOT_STARTED || mu_pid() != home) return;
  if (atomic_load_explicit(&stays_away, memory_order_relaxed)) return;
  if (m.attempts && m.attempts++ % RETRY_EVERY) return;
  if (!atomic_compare_exchange_strong_explicit(&m.state, &not_started, STARTING, memory_order_seq_cst,
                                               memory_order_relaxed))
    return;
  if (atomic_load_explicit(&keeps_out, memory_order_seq_cst)) {
    atomic_store_explicit(&m.state, NOT_STARTED, memory_order_release);
    return;
  }
  if (would_be_killed()) {
    mu_mesher_stay_away();
    atomic_store_explicit(&m.state, NOT_STARTED, memory_order_release);
    return;
  }
  bool left_out = mu_profile_leave_out(true); /* libc allocates for it */
  uintptr_t was_inside = mu_heap_step_out();
  int err = mu_thread_create(&m.thread, run);
  mu_heap_step_in(was_inside);
  mu_profile_leave_out(left_out);
  if (err == 0) {
    atomic_store_explicit(&m.state, RUNNING, memory_order_release);
    return;
  }
  m.attempts = 1;
  atomic_store_explicit(&m.state, NOT_STARTED, memory_order_release);
}

MU_AT_START static void grown(size_t pages) {
  int64_t bytes = (int64_t)(pages << mu_arena.page_shift);
  if (MU_UNLIKELY(atomic_load_explicit(&m.limited, memory_order_relaxed)) &&
      atomic_fetch_sub_explicit(&m.may_grow, bytes, memory_order_relaxed) < bytes && is_running() &&
      !mu_thread_is_ours())
    request(WANT_ROOM);
  if (MU_LIKELY(atomic_load_explicit(&m.state, memory_order_relaxed) != NOT_STARTED)) return;
  if (mu_options.eager || mu_arena_limit() << mu_arena.page_shift >= START_BYTES) start();
}

MU_AT_START void mu_mesher_init(void) {
  home = mu_pid();
  mu_on_activity = activity;
  mu_on_growth = grown;
  /* Not before the program allocates: who brings a malloc of its own, and counts its threads, gets none of ours. */
  if (!mu_options.eager && mu_has_heap()) grown(0);
  if (mu_options.profile && mu_options.profile_signal) start(); /* writes the profile of a program that sleeps */
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
  while (atomic_load_explicit(&m.state, memory_order_acquire) == STARTING && mu_pid() == home)
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
  if (atomic_load_explicit(&stays_away, memory_order_relaxed))
    return "no thread is started, because of a seccomp filter, a fork that did not go through libc, valgrind, or a "
           "namespace of its own (dlmopen)";
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
    let_go();
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
  if (mu_pid() == home && !mu_thread_is_ours() && !drops_caps) stop();
}

void mu_mesher_may_start(void) {
  atomic_fetch_sub_explicit(&keeps_out, 1, memory_order_seq_cst);
}

/* libc ends the process when its last thread ends: that may not be one of ours. From then on nothing is meshed. */
void mu_main_thread_ended(void) {
  atomic_fetch_add_explicit(&keeps_out, 1, memory_order_seq_cst);
  if (mu_pid() == home && !mu_thread_is_ours()) stop();
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
  mu_reclaim_renew();
  mu_pressure_forget();
  mu_headroom_forget();
  atomic_store_explicit(&keeps_out, 0, memory_order_relaxed);
  home = mu_pid();
  atomic_store_explicit(&mu_mesher_listens, 0, memory_order_relaxed);
  mu_stats_page_left_alone();
}
