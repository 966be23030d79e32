/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing again, opening, and letting go. One unit of one page with two slots, one for each of two threads; the mesher,
 * the fault thread, and a sandbox that may be set at any moment, after which the kernel refuses every ioctl. MOVED: the
 * unit is anonymous memory that is moved to scratch. Else it is meshed, is write-protected, and goes from one place of a
 * mesh file to the next. See README.md; check.sh verifies this file as it stands, and with each of AGAIN_1..AGAIN_6.
 * REACH_1..REACH_5 "fail" when a state is reached.
 */

#ifndef PASSES
#define PASSES 2
#endif

/* As in protocol.pml. */
#define U_CLOSED   1
#define U_CLAIMED  2
#define U_WAITED   3
#define U_RETURNED 4
#define U_DONE     5

#define OPEN_    0
#define CLOSING  1
#define SHUT     2

#define RUNS   0
#define UNREAD 1
#define READ   2

/* What the unit's address shows: places 0 to PASSES of mesh files, or the private page. */
#define OWN  (PASSES + 1)
#define GONE (PASSES + 2) /* nothing: a touch waits if it is registered, else reads zeros */
#define PLACES (PASSES + 3)

byte shows;
bit now[2 * PLACES]; /* [place * 2 + slot]: the value last stored in this slot */
bit scratch[2], away;
bit armed, protected;
byte unit, phase;
bit busy;     /* the fault thread is at an event */
bit refuses;  /* the sandbox is set */
bit closing;  /* userfaultfd is closed, but for who holds it */
bit released; /* and nobody does */
bit holds;    /* the fault thread has it in use */
byte waits[2];

#define AT(p, s) ((p) * 2 + (s))
#define MINE(s)  now[AT(shows, s)]

inline reached(condition) {
  if
  :: condition -> assert(false)
  :: else
  fi
}

inline wake() { waits[0] = RUNS; waits[1] = RUNS }

/* The store makes all other copies of the slot stale. */
inline store(s) {
  d_step {
    i = 0;
    do
    :: i < PLACES -> now[AT(i, s)] = 0; i++
    :: else -> break
    od;
    i = 0;
    scratch[s] = 0;
    now[AT(OWN, s)] = 1
  }
}

proctype Program(bit me) {
  byte i;
end:
  do
  :: atomic { true -> /* a load */
      do
      :: shows == GONE && armed -> waits[me] = UNREAD; waits[me] == RUNS
      :: else -> break
      od;
      assert(MINE(me)) /* not zeros, and not what was there before */
    }
  :: atomic { true -> /* a store */
      do
      :: armed && (protected || shows == GONE) -> waits[me] = UNREAD; waits[me] == RUNS
      :: else -> break
      od;
      assert(MINE(me));
      if
      :: shows != OWN -> now[AT(OWN, 1 - me)] = now[AT(shows, 1 - me)]; shows = OWN
      :: else
      fi;
      store(me)
    }
  od
}

/* UFFDIO_MOVE back from scratch, or UFFDIO_WRITEPROTECT that lifts it; wakes. */
inline put_back() {
  atomic {
    if
    :: !refuses ->
      if
      :: away && armed && shows == GONE ->
        now[AT(OWN, 0)] = scratch[0]; now[AT(OWN, 1)] = scratch[1]; shows = OWN; away = 0
      :: else
      fi;
      protected = 0;
      wake()
    :: else
    fi
  }
}

inline take_away() {
  atomic {
    if
    :: refuses -> refused = 1
    :: else ->
#ifdef MOVED
      scratch[0] = now[AT(OWN, 0)]; scratch[1] = now[AT(OWN, 1)]; away = 1; shows = GONE
#else
      protected = 1
#endif
    fi
  }
}

/* Who has a copy of his own stays. */
inline look() {
  atomic {
#ifndef MOVED
    if
    :: shows == OWN ->
#ifdef REACH_1
      assert(false);
#endif
      refused = 1
    :: else
    fi
#endif
    skip
  }
}

inline let_go() {
  atomic { closing = 1 }
  atomic { released } /* and then the kernel wakes */
}

proctype Mesher() {
  byte pass;
  bit refused, won;
  do
  :: pass < PASSES && !closing ->
#ifdef MOVED
    if
    :: shows != OWN -> break /* it is meshed: see the other variant */
    :: else
    fi;
#endif
    phase = CLOSING;
    atomic {
      if
      :: refuses -> phase = OPEN_; break /* nothing is registered */
      :: else -> armed = 1
      fi
    }
    take_away();
    look();
    atomic {
      unit = (refused -> U_RETURNED : U_CLOSED);
      phase = SHUT
    }
    if
    :: refused -> put_back()
    :: else
    fi;
    /* Claim. */
#ifdef AGAIN_1
    if
    :: unit == U_CLOSED -> won = 1
    :: else
    fi;
    if
    :: won -> unit = U_CLAIMED
    :: else
    fi;
#else
    atomic {
      if
      :: unit == U_CLOSED -> unit = U_CLAIMED; won = 1
      :: else
      fi
    }
#endif
    if
    :: won ->
      /* Copy, slot by slot, to a new place. */
#ifdef MOVED
      now[AT(pass + 1, 0)] = scratch[0];
      now[AT(pass + 1, 1)] = scratch[1];
#else
      now[AT(pass + 1, 0)] = now[AT(shows, 0)];
      now[AT(pass + 1, 1)] = now[AT(shows, 1)];
#endif
      if
      :: atomic { true -> /* mmap: what was registered goes with the old mapping */
          shows = pass + 1; armed = 0; protected = 0; away = 0; scratch[0] = 0; scratch[1] = 0
        }
        atomic { won = (unit == U_WAITED); unit = U_DONE }
        atomic {
          if
          :: won && !refuses -> wake()
#ifdef REACH_2
          :: won && refuses -> assert(false)
#endif
          :: else
          fi
        }
      :: true -> skip /* there is no mapping left */
      fi;
      won = 0
    :: else
    fi;
    /* Opening: what is not DONE goes back. */
    atomic {
      if
      :: unit == U_CLOSED || unit == U_CLAIMED || unit == U_WAITED -> unit = U_RETURNED; won = 1
      :: else
      fi
    }
    if
    :: won -> put_back()
    :: else
    fi;
    won = 0;
    phase = OPEN_;
#ifndef AGAIN_5
    !busy;
#endif
    /* What could not be put back is carried: fresh memory with its bytes, mapped there. It is not registered. */
#ifdef AGAIN_2
    if
    :: away -> let_go()
    :: else
    fi;
#endif
    atomic {
      if
      :: away ->
#ifdef REACH_3
        assert(false);
#endif
        now[AT(OWN, 0)] = scratch[0]; now[AT(OWN, 1)] = scratch[1]; shows = OWN; away = 0; armed = 0; protected = 0
      :: else
      fi
    }
    /* Disarm, and wake once more. Either may be refused. */
    atomic {
      if
      :: !refuses ->
        if
        :: armed -> armed = 0; protected = 0; wake()
        :: else
        fi
      :: else -> won = 1
      fi
    }
    atomic {
#ifdef AGAIN_6
      skip /* "disarming has woken everybody" */
#else
      if
      :: !refuses -> wake()
      :: else -> won = 1
      fi
#endif
    }
#ifdef AGAIN_3
    won = 0; /* is content with that */
#endif
    if
    :: won ->
#ifdef REACH_4
      reached(waits[0] == READ && waits[1] == UNREAD);
#endif
      let_go()
    :: else
    fi;
#ifdef REACH_5
    reached(pass == PASSES - 1 && shows == PASSES);
#endif
    atomic { unit = 0; refused = 0; won = 0; pass++ }
  :: else -> break
  od;
  atomic { !busy && (!(waits[0] == UNREAD || waits[1] == UNREAD) || !holds) -> assert(waits[0] == RUNS && waits[1] == RUNS) }
}

/* The kernel: the last holder is gone. */
proctype Release() {
end:
  atomic { closing && !holds -> armed = 0; protected = 0; wake(); released = 1 }
}

proctype Fault() {
  bit won;
end:
  do
#ifndef AGAIN_4
  :: atomic { closing -> holds = 0; break } /* seen after poll, which returns: it is told, and looks by itself */
#endif
  :: atomic {
      !closing && (waits[0] == UNREAD || waits[1] == UNREAD) ->
      if
      :: waits[0] == UNREAD -> waits[0] = READ
      :: waits[1] == UNREAD -> waits[1] = READ
      fi;
      busy = 1
    }
    phase != CLOSING;
    atomic {
      if
      :: phase == OPEN_ -> won = 0
      :: phase == SHUT && unit == U_CLOSED -> unit = U_RETURNED; won = 1
      :: phase == SHUT && unit == U_CLAIMED -> unit = U_WAITED; busy = 0; goto end
      :: phase == SHUT && unit == U_WAITED -> busy = 0; goto end
      :: phase == SHUT && unit == U_RETURNED -> won = 1
      :: else -> won = 0
      fi
    }
    if
    :: won -> put_back()
    :: else
    fi;
    atomic {
      if
      :: !refuses -> wake()
      :: else
      fi;
      won = 0; busy = 0
    }
  od
}

proctype Sandbox() {
end:
  atomic { true -> refuses = 1 }
}

init {
  atomic {
#ifdef MOVED
    shows = OWN;
#endif
    now[AT(shows, 0)] = 1;
    now[AT(shows, 1)] = 1;
    holds = 1;
    run Program(0);
    run Program(1);
    run Mesher();
    run Fault();
    run Release();
#ifdef SANDBOX
    run Sandbox();
#endif
  }
}
