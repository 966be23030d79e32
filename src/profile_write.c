/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The heap profile as a file of pprof's (profile.proto):
 *
 * 1. What is mapped is asked, before any lock of ours is held: libc has one for it.
 * 2. Stacks and live samples are copied; each live sample adds its figures to its stack's, with its weight.
 * 3. Fields are written: types, stacks with their figures, addresses, mappings, strings.
 */
#include "src/arena.h"
#include "src/log.h"
#include "src/pprof.h"
#include "src/profile.h"
#include "src/profile_pages.h"
#include "src/sampling.h"
#include "src/sys.h"
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <time.h>

enum { MAPS_ROOM = 4 << 20, MAX_MAPPINGS = 1024, MAX_BUILD_ID = 20, MAX_LOCATIONS = 1 << 20 };

/* Fields of profile.proto. */
enum {
  SAMPLE_TYPE = 1,
  SAMPLE,
  MAPPING,
  LOCATION,
  FUNCTION,
  STRING_TABLE,
  DROP_FRAMES,
  TIME_NANOS = 9,
  DURATION_NANOS
};
enum { PERIOD_TYPE = 11, PERIOD, COMMENT, DEFAULT_SAMPLE_TYPE };

/* Strings with a number of their own; those of mappings follow. */
enum text {
  EMPTY,
  ALLOC_OBJECTS,
  ALLOC_SPACE,
  INUSE_OBJECTS,
  INUSE_SPACE,
  HELD_SPACE,
  COUNT,
  BYTES,
  SPACE,
  FRAMES_TO_DROP,
  OTHER_STACKS,
  REMARK,
  FIRST_FREE_TEXT
};

struct mapping {
  uintptr_t start, end;
  uint64_t offset;
  const char *file;
  uint8_t build_id[MAX_BUILD_ID], build_id_bytes;
};

struct figures {
  double inuse_objects, inuse_bytes, held_bytes;
};

/* All that writing needs, in one mapping that is gone afterwards. */
struct work {
  struct mu_pprof out;
  struct mu_message message, inner;
  struct mapping mappings[MAX_MAPPINGS];
  uint32_t mapping_count;
  struct mu_profile_copy copy;
  struct figures figures[1 << 14];    /* by stack */
  uintptr_t locations[MAX_LOCATIONS]; /* hash table of addresses; an address's number is its slot's, plus 2 */
  char maps[MAPS_ROOM], text[8192];
};

/* ---- what is mapped ---------------------------------------------------------------------------------------------- */

static uint64_t hexadecimal(const char **at) {
  uint64_t n = 0;
  for (;; (*at)++) {
    char c = **at;
    if (c >= '0' && c <= '9')
      n = n << 4 | (uint64_t)(c - '0');
    else if (c >= 'a' && c <= 'f')
      n = n << 4 | (uint64_t)(c - 'a' + 10);
    else
      return n;
  }
}

static void skip_word(const char **at) {
  while (**at && **at != ' ') (*at)++;
  while (**at == ' ') (*at)++;
}

/* "start-end permissions offset device inode   file" */
static void read_mapping(struct work *w, const char *line) {
  struct mapping *m = &w->mappings[w->mapping_count];
  *m = (struct mapping){.start = hexadecimal(&line)};
  line += *line == '-';
  m->end = hexadecimal(&line);
  line += *line == ' ';
  bool code = strlen(line) > 3 && line[2] == 'x';
  skip_word(&line);
  m->offset = hexadecimal(&line);
  line += *line == ' ';
  skip_word(&line);
  skip_word(&line);
  m->file = line;
  if (code && w->mapping_count < MAX_MAPPINGS) w->mapping_count++;
}

static void read_maps(struct work *w) {
  ssize_t n = mu_read_file("/proc/self/maps", w->maps, sizeof w->maps);
  for (char *line = w->maps, *end; n > 0 && (end = strchr(line, '\n')); line = end + 1) {
    *end = 0;
    if (w->mapping_count < MAX_MAPPINGS) read_mapping(w, line);
  }
  /* The program's own comes first: pprof takes it for the main one. */
  uintptr_t entry = getauxval(AT_ENTRY);
  for (uint32_t i = 1; i < w->mapping_count; i++) {
    if (entry < w->mappings[i].start || entry >= w->mappings[i].end) continue;
    struct mapping main = w->mappings[i];
    memmove(&w->mappings[1], &w->mappings[0], i * sizeof main);
    w->mappings[0] = main;
  }
}

static struct mapping *mapping_of(struct work *w, uintptr_t address, uint32_t *number) {
  for (uint32_t i = 0; i < w->mapping_count; i++) {
    struct mapping *m = &w->mappings[i];
    *number = i + 1;
    if (address >= m->start && address < m->end) return m;
  }
  *number = 0;
  return NULL;
}

/* A segment of notes: 4 bytes each of the name's length, the content's length and the type, then both, padded. */
static void find_build_id(const uint8_t *at, size_t bytes, struct mapping *m) {
  enum { HEADER = 12, NT_BUILD_ID = 3 };
  while (bytes > HEADER) {
    uint32_t head[3];
    memcpy(head, at, sizeof head);
    size_t name = mu_round_up(head[0], 4), all = HEADER + name + mu_round_up(head[1], 4);
    if (all > bytes) return;
    if (head[2] == NT_BUILD_ID && head[0] == 4 && memcmp(at + HEADER, "GNU", 4) == 0 && head[1] <= MAX_BUILD_ID) {
      m->build_id_bytes = (uint8_t)head[1];
      memcpy(m->build_id, at + HEADER + name, head[1]);
    }
    at += all;
    bytes -= all;
  }
}

static int note_build_id(struct dl_phdr_info *info, size_t size, void *data) {
  struct work *w = data;
  (void)size;
  for (unsigned i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
    uint32_t number;
    struct mapping *m = mapping_of(w, info->dlpi_addr + p->p_vaddr, &number);
    for (unsigned j = 0; m && j < info->dlpi_phnum; j++) {
      const ElfW(Phdr) *note = &info->dlpi_phdr[j];
      if (note->p_type == PT_NOTE) find_build_id((const uint8_t *)(info->dlpi_addr + note->p_vaddr), note->p_memsz, m);
    }
  }
  return 0;
}

/* ---- figures ----------------------------------------------------------------------------------------------------- */

static bool gather(struct work *w, uint32_t interval) {
  struct mu_pages pages;
  if (!mu_profile_copy(&w->copy)) return false;
  if (!mu_pages_begin(&pages)) {
    mu_profile_copy_done(&w->copy);
    return false;
  }
  for (uint32_t i = 0; i < w->copy.sample_count; i++) {
    const struct mu_profile_sample *s = &w->copy.samples[i];
    struct figures *f = &w->figures[s->stack];
    double weight = mu_sample_weight(s->size, interval);
    f->inuse_objects += weight;
    f->inuse_bytes += weight * (double)s->size;
    f->held_bytes += weight * mu_pages_held(&pages, (const void *)s->object, s->size);
  }
  mu_pages_end(&pages);
  return true;
}

/* ---- fields ------------------------------------------------------------------------------------------------------ */

/* Of an address; 1 is the place of stacks that are not known. */
static uint64_t location_of(struct work *w, uintptr_t address) {
  size_t i = (size_t)(address * 0x9E3779B97F4A7C15U >> 40) % MAX_LOCATIONS;
  while (w->locations[i] && w->locations[i] != address) i = (i + 1) % MAX_LOCATIONS;
  w->locations[i] = address;
  return i + 2;
}

static uint64_t rounded(double n) {
  return (uint64_t)(n + 0.5);
}

static void write_stack(struct work *w, uint32_t number) {
  enum { LOCATION_ID = 1, VALUE };
  const struct mu_profile_stack *s = &w->copy.stacks[number];
  const struct figures *f = &w->figures[number];
  struct mu_message *m = &w->message;
  if (s->objects == 0) return;
  m->used = 0;
  uint32_t start = mu_packed(m, LOCATION_ID);
  if (!s->depth) mu_value(m, 1);
  for (uint32_t i = 0; i < s->depth; i++) mu_value(m, location_of(w, w->copy.addresses[s->first + i]));
  mu_packed_end(m, start);
  start = mu_packed(m, VALUE);
  mu_value(m, rounded(s->objects));
  mu_value(m, rounded(s->bytes));
  mu_value(m, rounded(f->inuse_objects));
  mu_value(m, rounded(f->inuse_bytes));
  mu_value(m, rounded(f->held_bytes));
  mu_packed_end(m, start);
  mu_pprof_message(&w->out, SAMPLE, m);
}

/* A location that is a function without an address. */
static void write_others(struct work *w) {
  enum { ID = 1, NAME = 2, LINE = 4, LINE_FUNCTION = 1 };
  w->inner.used = w->message.used = 0;
  mu_number(&w->message, ID, 1);
  mu_number(&w->message, NAME, OTHER_STACKS);
  mu_pprof_message(&w->out, FUNCTION, &w->message);
  w->message.used = 0;
  mu_number(&w->inner, LINE_FUNCTION, 1);
  mu_number(&w->message, ID, 1);
  mu_inner(&w->message, LINE, &w->inner);
  mu_pprof_message(&w->out, LOCATION, &w->message);
}

static void write_locations(struct work *w) {
  enum { ID = 1, MAPPING_ID, ADDRESS };
  write_others(w);
  for (size_t i = 0; i < MAX_LOCATIONS; i++) {
    uint32_t mapping;
    if (!w->locations[i]) continue;
    mapping_of(w, w->locations[i], &mapping);
    w->message.used = 0;
    mu_number(&w->message, ID, i + 2);
    if (mapping) mu_number(&w->message, MAPPING_ID, mapping);
    mu_number(&w->message, ADDRESS, w->locations[i]);
    mu_pprof_message(&w->out, LOCATION, &w->message);
  }
}

/* Their strings are two each: the file and the build id. */
static void write_mappings(struct work *w) {
  enum { ID = 1, START, LIMIT, OFFSET, FILE_NAME, BUILD_ID };
  for (uint32_t i = 0; i < w->mapping_count; i++) {
    const struct mapping *m = &w->mappings[i];
    w->message.used = 0;
    mu_number(&w->message, ID, i + 1);
    mu_number(&w->message, START, m->start);
    mu_number(&w->message, LIMIT, m->end);
    mu_number(&w->message, OFFSET, m->offset);
    mu_number(&w->message, FILE_NAME, FIRST_FREE_TEXT + 2 * i);
    mu_number(&w->message, BUILD_ID, FIRST_FREE_TEXT + 2 * i + 1);
    mu_pprof_message(&w->out, MAPPING, &w->message);
  }
}

static void write_type(struct work *w, unsigned field, enum text type, enum text unit) {
  w->message.used = 0;
  mu_number(&w->message, 1, type);
  mu_number(&w->message, 2, unit);
  mu_pprof_message(&w->out, field, &w->message);
}

static void write_strings(struct work *w, uint32_t interval) {
  static const char *const texts[FIRST_FREE_TEXT] = {
      [EMPTY] = "",
      [ALLOC_OBJECTS] = "alloc_objects",
      [ALLOC_SPACE] = "alloc_space",
      [INUSE_OBJECTS] = "inuse_objects",
      [INUSE_SPACE] = "inuse_space",
      [HELD_SPACE] = "held_space",
      [COUNT] = "count",
      [BYTES] = "bytes",
      [SPACE] = "space",
      [FRAMES_TO_DROP] =
          "mu_(malloc|calloc|realloc|memalign)|malloc|calloc|realloc|memalign|aligned_alloc|posix_memalign",
      [OTHER_STACKS] = "(stack not known)",
  };
  for (unsigned i = 0; i < REMARK; i++) mu_pprof_text(&w->out, STRING_TABLE, texts[i]);
  mu_format(w->text, sizeof w->text, "mesh-uffd; a sample each %u bytes; %u stacks, %u live samples, %lu not followed",
            interval, w->copy.stack_count - 1, w->copy.sample_count, w->copy.lost);
  mu_pprof_text(&w->out, STRING_TABLE, w->text);
  for (uint32_t i = 0; i < w->mapping_count; i++) {
    const struct mapping *m = &w->mappings[i];
    size_t n = 0;
    mu_pprof_text(&w->out, STRING_TABLE, m->file);
    w->text[0] = 0;
    for (unsigned j = 0; j < m->build_id_bytes; j++)
      n += mu_format(w->text + n, sizeof w->text - n, "%02x", m->build_id[j]);
    mu_pprof_text(&w->out, STRING_TABLE, w->text);
  }
}

static int encode(struct work *w, const char *path, uint32_t interval, uint64_t since_ns) {
  struct timespec now = {0, 0};
  clock_gettime(CLOCK_REALTIME, &now);
  mu_pprof_open(&w->out, path);
  write_type(w, SAMPLE_TYPE, ALLOC_OBJECTS, COUNT);
  write_type(w, SAMPLE_TYPE, ALLOC_SPACE, BYTES);
  write_type(w, SAMPLE_TYPE, INUSE_OBJECTS, COUNT);
  write_type(w, SAMPLE_TYPE, INUSE_SPACE, BYTES);
  write_type(w, SAMPLE_TYPE, HELD_SPACE, BYTES);
  for (uint32_t i = 1; i < w->copy.stack_count; i++) write_stack(w, i);
  write_mappings(w);
  write_locations(w);
  write_strings(w, interval);
  mu_pprof_number(&w->out, DROP_FRAMES, FRAMES_TO_DROP);
  mu_pprof_number(&w->out, TIME_NANOS, (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec);
  mu_pprof_number(&w->out, DURATION_NANOS, mu_now_ns() - since_ns);
  write_type(w, PERIOD_TYPE, SPACE, BYTES);
  mu_pprof_number(&w->out, PERIOD, interval);
  mu_pprof_number(&w->out, COMMENT, REMARK);
  mu_pprof_number(&w->out, DEFAULT_SAMPLE_TYPE, INUSE_SPACE);
  return mu_pprof_close(&w->out);
}

int mu_profile_encode(const char *path, uint32_t interval, uint64_t since_ns) {
  int err;
  struct work *w =
      mu_mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &err);
  if (!w) return err;
  read_maps(w);
  dl_iterate_phdr(note_build_id, w);
  if (gather(w, interval)) {
    err = encode(w, path, interval, since_ns);
    mu_profile_copy_done(&w->copy);
  } else {
    err = ENOMEM;
  }
  mu_munmap(w, sizeof *w);
  return err;
}
