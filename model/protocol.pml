/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The claim / free / pack / fork protocol of mesh-uffd. See README.md for what is modelled and what is not, and
 * ARCHITECTURE.md for the protocol itself. check.sh verifies this file as it stands, then once for each deliberate bug
 * (BUG_1..BUG_11), for each unsafe reading of the text (GAP_1..GAP_6), and for each state that must be reachable
 * (REACH_1..REACH_8: these "fail" when the state is reached).
 *
 * LOCKS is for the order of the locks alone: threads are born and claim, and fork takes every lock by itself. Without it
 * a critical section is one step, which is the same: nobody touches program memory, or waits, in one.
 */

#ifndef PASSES
#define PASSES 2 /* passes the mesher makes */
#endif
#ifndef FORKS
#define FORKS 1 /* forks: 0 or 1 */
#endif
#if defined(GAP_4) && !defined(LOCKS)
#define LOCKS
#endif

/* Which units thread `me` uses: both, or with SMALL thread 1 unit 1 only. */
#ifdef SMALL
#define USES(u) ((u) == 1 || me == 0)
#else
#define USES(u) true
#endif

/* Slot s of unit u. Thread t owns slot t of every unit: pages are shared between threads, slots are not. */
#define AT(u, s) ((u) * 2 + (s))

/* States of a span; a unit is one span here. FREE -> OPEN is immediate: the run is taken again at the same address. */
#define OPEN   0
#define CLOSED 1
#define MESHED 2

/* States of a unit in a pass. U_BACK is RETURNED whose memory is back: see GAP_1. */
#define U_IDLE     0
#define U_CLOSED   1
#define U_CLAIMED  2
#define U_WAITED   3
#define U_RETURNED 4
#define U_BACK     5
#define U_DONE     6

/* Phases of a run. */
#define QUIET   0
#define CLOSING 1
#define SHUT    2

/* A thread and its page fault, as the kernel sees them. */
#define RUNS   0
#define UNREAD 1 /* waits, event not yet read */
#define READ   2 /* waits, event read by the fault thread */

/* ---- metadata ---- */
byte span[2];
bit live[4];     /* the bitmaps */
byte unit[2];    /* the atomic words */
bit refused[2];  /* the kernel would not move this page */
byte phase;
bit used[2];     /* slots of the packed unit ever written */
bit pass_lock;
#ifdef LOCKS
bit registry_lock, class_lock;
#endif

/*
 * ---- memory ----
 * What counts of a byte is whether it is the value last stored in its slot. Every store stores a value never seen
 * before, so a store makes all other copies of its slot stale.
 */
bit file[2];     /* the unit is a private mapping of the packed unit */
bit armed[2];    /* registered with userfaultfd */
bit here[2];     /* a private page is mapped at the unit's address */
bit page[4];     /* its slots, 1: the value last stored */
bit away[2];     /* scratch holds a page of the unit */
bit scratch[4];  /* its slots, 1: the value last stored */
byte packed[2];  /* slots of the packed unit, u + 1: the value last stored in that slot of unit u */

/* ---- threads in the kernel ---- */
byte waits[2];
byte where[2];
bit answering;   /* the fault thread has an event in hand */

/* ---- ghosts: what must be true ---- */
bit stored[4];   /* something was stored in this slot since it was claimed */
bit child[4];    /* a child lives that reads this slot, which is live there, from the packed unit */

#define TRAPS(u)     (armed[u] && !here[u])
#define INTACT(u, s) (here[u] -> page[AT(u, s)] : (file[u] && packed[s] == u + 1))
#define NOTHING_LIVE (!live[0] && !live[1] && !live[2] && !live[3])

#ifdef LOCKS
#define LOCK(l)   atomic { l == 0 -> l = 1 }
#define UNLOCK(l) l = 0
#define CLASS     (!class_lock)
#else
#define CLASS true
#endif

/* Which spans slots are claimed from. */
#if defined(BUG_7)
#define CLAIMABLE(u) (span[u] != MESHED) /* claims go on while the span is in a pass */
#elif defined(BUG_10)
#define CLAIMABLE(u) (span[u] != CLOSED) /* meshed spans are claimed from */
#else
#define CLAIMABLE(u) (span[u] == OPEN)
#endif

/* GAP_6: only pages that were there before the run was armed are moved. */
#ifdef GAP_6
bit seen[2];
#define SEEN(u) (seen[u])
#else
#define SEEN(u) true
#endif

/* Which slots of the packed unit a unit may not use. */
#ifdef BUG_8
#define TAKEN(s) ((file[0] && live[AT(0, s)]) || (file[1] && live[AT(1, s)])) /* freed slots are used again */
#else
#define TAKEN(s) (used[s])
#endif
#define CLASHES(u) ((live[AT(u, 0)] && TAKEN(0)) || (live[AT(u, 1)] && TAKEN(1)))

/* All inlines up to access() are used in one indivisible step each: one system call, or one critical section. */

inline reached(condition) {
  if
  :: condition -> assert(false)
  :: else
  fi
}

inline wake(u) {
  if
  :: waits[0] != RUNS && where[0] == u -> waits[0] = RUNS; where[0] = 0
  :: else
  fi;
  if
  :: waits[1] != RUNS && where[1] == u -> waits[1] = RUNS; where[1] = 0
  :: else
  fi
}

/* The run's last slot is free: it goes back to the arena and is taken again, all new. A pass in progress keeps it. */
inline destroy_if_empty() {
  if
  :: NOTHING_LIVE && span[0] != CLOSED && span[1] != CLOSED && (span[0] == MESHED || span[1] == MESHED) ->
#ifdef REACH_7
    assert(false);
#endif
    span[0] = OPEN; file[0] = 0; here[0] = 0; page[0] = 0; page[1] = 0;
    span[1] = OPEN; file[1] = 0; here[1] = 0; page[2] = 0; page[3] = 0;
#ifdef GAP_5
    /* The packed unit's place in the file is emptied, to be used again. */
    assert(!child[0] && !child[1] && !child[2] && !child[3]);
    packed[0] = 0; packed[1] = 0; used[0] = 0; used[1] = 0
#endif
  :: else
  fi
}

/* UFFDIO_MOVE, run to scratch. A hole stays one; the kernel may refuse a page. */
inline move_away(u) {
  if
  :: armed[u] && here[u] && SEEN(u) ->
    if
    :: true -> refused[u] = 1
    :: true ->
      away[u] = 1; scratch[AT(u, 0)] = page[AT(u, 0)]; scratch[AT(u, 1)] = page[AT(u, 1)];
      here[u] = 0; page[AT(u, 0)] = 0; page[AT(u, 1)] = 0
    fi
  :: else
  fi
}

/* UFFDIO_MOVE, scratch to run: needs a registered run, a page to move and a place for it. */
inline move_back(u) {
  if
  :: away[u] && armed[u] && !here[u] ->
    here[u] = 1; page[AT(u, 0)] = scratch[AT(u, 0)]; page[AT(u, 1)] = scratch[AT(u, 1)];
    away[u] = 0; scratch[AT(u, 0)] = 0; scratch[AT(u, 1)] = 0
  :: else
  fi
}

/* UFFDIO_ZEROPAGE: needs a registered run and a hole. */
inline zero_fill(u) {
  if
  :: armed[u] && !here[u] -> here[u] = 1; page[AT(u, 0)] = 0; page[AT(u, 1)] = 0
  :: else
  fi
}

/* mmap(MAP_PRIVATE | MAP_FIXED) of the packed unit: the old mapping goes, and what was registered with it. */
inline remap(u) {
  file[u] = 1; armed[u] = 0; here[u] = 0; page[AT(u, 0)] = 0; page[AT(u, 1)] = 0
}

/* The bytes of a slot are nobody's: forget them everywhere. */
inline forget(u, s) {
  page[AT(u, s)] = 0;
  scratch[AT(u, s)] = 0;
  packed[s] = (packed[s] == u + 1 -> 0 : packed[s])
}

/* A load, or a load and a store, in a page that does not trap. */
inline access(u) {
  assert(!stored[AT(u, me)] || INTACT(u, me));
  if
  :: true /* load only */
  :: true ->
    if
    :: !here[u] && file[u] -> /* the kernel makes a private copy of the page */
#ifdef REACH_8
      assert(false);
#endif
      page[AT(u, 0)] = (packed[0] == u + 1); page[AT(u, 1)] = (packed[1] == u + 1)
    :: else
    fi;
    here[u] = 1;
    forget(u, me);
    stored[AT(u, me)] = 1;
    page[AT(u, me)] = 1
  fi
}

#define CLAIM(u) \
  atomic { USES(u) && CLASS && CLAIMABLE(u) && !live[AT(u, me)] -> live[AT(u, me)] = 1 }

#define FREE(u) \
  atomic { CLASS && live[AT(u, me)] -> \
    live[AT(u, me)] = 0; stored[AT(u, me)] = 0; forget(u, me); destroy_if_empty() }

#define TOUCH(u) \
  atomic { live[AT(u, me)] -> \
    do \
    :: TRAPS(u) -> where[me] = u; waits[me] = UNREAD; waits[me] == RUNS \
    :: else -> access(u); break \
    od }

proctype Program(bit me) {
#ifdef LOCKS
  /* The thread is born: registry, then class. */
  LOCK(registry_lock);
  LOCK(class_lock);
  UNLOCK(class_lock);
  UNLOCK(registry_lock);
#endif
end:
  do
  :: CLAIM(0)
  :: CLAIM(1)
#ifdef LOCKS
  :: break
#else
  :: FREE(0)
  :: FREE(1)
  :: TOUCH(0)
  :: TOUCH(1)
#endif
  od
}

/* A thread that forks at any moment, and the child. */
proctype Forker() {
#ifdef LOCKS
  LOCK(pass_lock);
#ifndef GAP_4
  LOCK(registry_lock);
#endif
  LOCK(class_lock);
#ifdef GAP_4
  LOCK(registry_lock);
#endif
#endif
  atomic {
#if !defined(BUG_9) && !defined(LOCKS)
    !pass_lock;
#endif
    /* Private pages are the child's own from here on, so looking at them once is enough; a page that is away is a hole
       in the child. What the child reads from the packed unit stays as it is because nobody may write there: see
       copy_slot(). */
    assert(!stored[0] || INTACT(0, 0));
    assert(!stored[1] || INTACT(0, 1));
    assert(!stored[2] || INTACT(1, 0));
    assert(!stored[3] || INTACT(1, 1));
    child[0] = live[0] && file[0] && !here[0];
    child[1] = live[1] && file[0] && !here[0];
    child[2] = live[2] && file[1] && !here[1];
    child[3] = live[3] && file[1] && !here[1]
  }
#ifdef LOCKS
  UNLOCK(registry_lock);
  UNLOCK(class_lock);
  UNLOCK(pass_lock);
#endif
  /* The child ends. */
  atomic { child[0] = 0; child[1] = 0; child[2] = 0; child[3] = 0 }
}

/* Copies slot s of unit u from scratch to the packed unit. */
inline copy_slot(u, s) {
  if
  :: todo[s] ->
    /* Nobody alive, here or in the child, maps these bytes as an object. */
    assert(!(live[AT(0, s)] && file[0] && !here[0]));
    assert(!(live[AT(1, s)] && file[1] && !here[1]));
    assert(!child[AT(0, s)] && !child[AT(1, s)]);
#ifdef REACH_6
    reached(child[0] || child[1] || child[2] || child[3]);
#endif
    used[s] = 1;
    packed[s] = (scratch[AT(u, s)] -> u + 1 : 0);
    todo[s] = 0
  :: else
  fi
}

inline pack(u) {
  if
  :: span[u] == CLOSED && plan[u] ->
#ifdef BUG_4
    /* Looks, then writes. */
    if
    :: refused[u] || unit[u] != U_CLOSED
    :: else -> unit[u] = U_CLAIMED; won = 1
    fi;
#else
    atomic {
      if
#ifdef BUG_2
      :: unit[u] == U_CLOSED -> unit[u] = U_CLAIMED; won = 1
#else
      :: !refused[u] && unit[u] == U_CLOSED -> unit[u] = U_CLAIMED; won = 1
#endif
      :: else
      fi
    }
#endif
    atomic {
      /* One look at the bitmap: what is checked is what is copied. */
      if
#ifdef BUG_1
      :: won -> todo[0] = live[AT(u, 0)]; todo[1] = live[AT(u, 1)]
#else
      :: won && !CLASHES(u) -> todo[0] = live[AT(u, 0)]; todo[1] = live[AT(u, 1)]
#endif
      :: else -> won = 0
      fi
    }
    if
    :: won ->
      atomic { copy_slot(u, 0); copy_slot(u, 1) }
#ifdef BUG_6
      /* Wakes, then remaps. */
      atomic {
        if
        :: unit[u] == U_WAITED -> wake(u)
        :: else
        fi
      }
      atomic { remap(u) }
      unit[u] = U_DONE;
#else
      atomic { remap(u) }
      atomic { won = (unit[u] == U_WAITED); unit[u] = U_DONE }
      atomic {
        if
#ifndef BUG_5
        :: won ->
#ifdef REACH_3
          assert(false);
#endif
          wake(u)
#endif
        :: else
        fi
      }
#endif
      won = 0
    :: else
    fi
  :: else
  fi
}

/* Puts back a unit that was not packed. */
inline give_back(u) {
  if
  :: span[u] == CLOSED ->
#ifdef GAP_1
    /* CLOSED and RETURNED are put back like any other; the fault thread may be at it too. */
    atomic {
      if
      :: unit[u] != U_DONE -> move_back(u)
      :: else
      fi
    }
#else
    atomic {
      if
      :: unit[u] == U_CLOSED -> unit[u] = U_CLAIMED /* from here on the fault thread leaves it alone */
      :: else
      fi
    }
    atomic {
      unit[u] != U_RETURNED; /* wait for the fault thread to finish */
      if
      :: unit[u] == U_CLAIMED || unit[u] == U_WAITED ->
#ifdef REACH_4
        reached(unit[u] == U_WAITED && away[u]);
#endif
        move_back(u)
      :: else
      fi
    }
#endif
  :: else
  fi
}

proctype Mesher() {
  byte pass;
  bit plan[2];
  bit todo[2];
  bit won;

  do
  :: pass < PASSES ->
    atomic {
      !pass_lock && CLASS ->
      pass_lock = 1;
      pass++;
      /* 1, 2: plan. A unit that looks as if it would fit. */
      plan[0] = span[0] == OPEN && (live[0] || live[1]) && !CLASHES(0);
      plan[1] = span[1] == OPEN && (live[2] || live[3]) && !CLASHES(1) &&
                !(plan[0] && ((live[0] && live[2]) || (live[1] && live[3])))
    }
    if
    :: plan[0] || plan[1] ->
      /* 3: close the spans, arm, move away. */
      atomic {
        CLASS ->
        span[0] = (span[0] == OPEN -> CLOSED : span[0]);
        span[1] = (span[1] == OPEN -> CLOSED : span[1]);
        phase = CLOSING
      }
#ifdef GAP_6
      atomic { seen[0] = here[0]; seen[1] = here[1] }
#endif
      atomic { armed[0] = (span[0] == CLOSED); armed[1] = (span[1] == CLOSED) }
      atomic { move_away(0) }
      atomic { move_away(1) }
      atomic {
        unit[0] = (span[0] == CLOSED -> U_CLOSED : U_IDLE);
        unit[1] = (span[1] == CLOSED -> U_CLOSED : U_IDLE)
      }
      phase = SHUT;

      /* 4 */
      pack(0);
      pack(1);

      /* 5: put back, disarm. Only what is still registered is woken: a unit that was remapped is not. */
      give_back(0);
      give_back(1);
      atomic {
        if
        :: armed[0] -> armed[0] = 0; wake(0)
        :: else
        fi;
        if
        :: armed[1] -> armed[1] = 0; wake(1)
        :: else
        fi
      }
      atomic {
        CLASS ->
        span[0] = (span[0] == CLOSED -> (unit[0] == U_DONE -> MESHED : OPEN) : span[0]);
        span[1] = (span[1] == CLOSED -> (unit[1] == U_DONE -> MESHED : OPEN) : span[1]);
#ifdef REACH_1
        reached(file[0] && file[1] && stored[0] && stored[3]);
#endif
#ifndef GAP_3
        destroy_if_empty(); /* its last slot may have been freed during the pass */
#endif
        assert(!(NOTHING_LIVE && (span[0] == MESHED || span[1] == MESHED))); /* no one would come to free it */
        plan[0] = 0; plan[1] = 0
      }
      phase = QUIET;
      atomic { unit[0] = U_IDLE; unit[1] = U_IDLE; refused[0] = 0; refused[1] = 0 }

      /* 6: drop scratch. */
      atomic { away[0] = 0; scratch[0] = 0; scratch[1] = 0; away[1] = 0; scratch[2] = 0; scratch[3] = 0 }
    :: else
    fi;
    pass_lock = 0
  :: else -> break
  od;

  /* Nothing is armed any more and every event has been answered: who waits now waits for ever. */
  atomic {
    !answering && waits[0] != UNREAD && waits[1] != UNREAD -> assert(waits[0] == RUNS && waits[1] == RUNS)
  }
}

proctype Fault() {
  bit u;
  bit won;

end:
  do
  :: atomic {
      if
      :: waits[0] == UNREAD -> waits[0] = READ; u = where[0]
      :: waits[1] == UNREAD -> waits[1] = READ; u = where[1]
      fi;
      answering = 1
    }
#ifdef BUG_3
    /* Fills while the run is being closed. */
    if
    :: phase == CLOSING -> won = 1
    :: else
    fi;
#else
    phase != CLOSING;
#endif
#ifdef BUG_11
    /* Looks, then writes. */
    if
    :: unit[u] == U_CLOSED -> unit[u] = U_RETURNED; won = 1
    :: else
    fi;
#endif
    /* The loop of compare-and-swaps, taken as the one that ends it. */
    atomic {
      if
      :: won
      :: !won && unit[u] == U_CLOSED -> unit[u] = U_RETURNED; won = 1
      :: !won && unit[u] == U_CLAIMED -> unit[u] = U_WAITED; u = 0; answering = 0; goto end
      :: !won && unit[u] == U_WAITED -> u = 0; answering = 0; goto end
      :: !won && (unit[u] == U_DONE || unit[u] == U_RETURNED || unit[u] == U_BACK)
#ifdef GAP_2
      :: !won && unit[u] == U_IDLE -> u = 0; answering = 0; goto end /* "disarming has woken everybody" */
#else
      :: !won && unit[u] == U_IDLE
#endif
      fi
    }
    if
    :: won ->
      atomic { move_back(u) }
      atomic {
#ifdef REACH_2
        reached(armed[u] && !here[u] && live[AT(u, 0)] && !stored[AT(u, 0)]);
#endif
        zero_fill(u);
        won = 0
      }
#ifndef GAP_1
      unit[u] = (unit[u] == U_RETURNED -> U_BACK : unit[u])
#endif
    :: else
    fi;
#ifdef REACH_5
    atomic {
      reached(unit[u] == U_IDLE && file[u] &&
              ((waits[0] == READ && where[0] == u) || (waits[1] == READ && where[1] == u)))
    }
#endif
    atomic { wake(u); u = 0; answering = 0 }
  od
}

init {
  atomic {
    run Program(0);
    run Program(1);
    run Mesher();
    run Fault();
#if FORKS > 0
    run Forker();
#endif
  }
}

#ifdef LIVENESS
ltl wakes { [] ((waits[0] != RUNS) -> <> (waits[0] == RUNS)) }
#endif
