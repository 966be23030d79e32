/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Heap profiling: some allocations are remembered with their stack until they are freed. While it is on every malloc
 * and free takes the slow way (mu_watch_calls); while it is off nothing of this is run.
 */
#ifndef MU_PROFILE_H
#define MU_PROFILE_H

#include "src/lock.h"

enum { MU_PROFILE_DEPTH = 64 };

struct mu_profile_stack {
  double objects, bytes; /* ever allocated, estimated */
  uint32_t hash, next;   /* next: of the same bucket, 0 for none */
  uint32_t first, depth; /* where its addresses are */
};

struct mu_profile_sample {
  uintptr_t object; /* 0: none */
  size_t size;      /* as asked for */
  uint32_t stack;
};

extern bool mu_profile_on;

/* Once, before there are other threads, when MESH_UFFD_PROFILE is set. */
void mu_profile_init(void);

/* An object of `size` bytes has been allocated at p; is about to be freed. */
void mu_profile_alloc(void *p, size_t size);
void mu_profile_free(void *p);
/* About to be resized, and perhaps moved; it failed: the sample is there again. */
struct mu_profile_sample mu_profile_take(void *p);
void mu_profile_put_back(const struct mu_profile_sample *sample);

/* What this thread allocates from now on is the library's own business, or not; returns what was before. */
bool mu_profile_leave_out(bool on);

/* Writes the profile to a file: 0, or an errno. mu_profile_write_as makes the name from the option's. */
int mu_profile_write(const char *path);
void mu_profile_write_at_exit(void);
/* If somebody asked for it by the signal. Takes the pass lock. */
extern _Atomic uint32_t mu_profile_asked;
void mu_profile_answer(void);

/* For the writer: a copy of what is known. */
struct mu_profile_copy {
  uint32_t stack_count, sample_count;
  struct mu_profile_stack *stacks; /* [1, stack_count); 1 is where those go for which there is no room */
  struct mu_profile_sample *samples;
  const uintptr_t *addresses;
  uint64_t lost; /* samples that could not be followed */
  void *memory;
  size_t bytes;
};
bool mu_profile_copy(struct mu_profile_copy *copy);
void mu_profile_copy_done(struct mu_profile_copy *copy);
/* Writes a copy's figures. */
int mu_profile_encode(const char *path, uint32_t interval, uint64_t since_ns);

/* Fork. */
extern struct mu_lock mu_profile_lock;

#endif
