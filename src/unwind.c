/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 1. Find the module of an address and its table of frames (.eh_frame_hdr); search that for the frame description.
 * 2. Run its instructions up to the address: they say where the caller's frame begins (the CFA) and where the registers
 *    are that the callee saved.
 * 3. The caller's registers are read from there; go on with its return address.
 * Code without a description (compiled at run time) is tried by its frame pointer.
 * Format: Linux Standard Base, "Exception Frames"; DWARF 4, 6.4 and 2.5.
 */
#include "src/unwind.h"
#include "src/sys.h"
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>

#if defined(__x86_64__)
enum { REGISTERS = 17, FRAME = 6, STACK = 7, RETURN = 16 };
#elif defined(__aarch64__)
enum { REGISTERS = 32, FRAME = 29, STACK = 31, RETURN = 30 };
#else
#error "no unwinder for this machine"
#endif

enum { MAX_STATES = 4, MAX_EXPRESSION_DEPTH = 8, WORD = sizeof(uintptr_t) };

/* Where a register of the caller is. */
enum rule_kind { SAME, UNDEFINED, AT_OFFSET, IS_OFFSET, IN_REGISTER, AT_EXPRESSION, IS_EXPRESSION };

struct rule {
  enum rule_kind kind;
  intptr_t value; /* an offset from the CFA, a register, or the address of an expression */
};

struct row {
  bool cfa_is_expression;
  unsigned cfa_register;
  intptr_t cfa; /* an offset, or the address of an expression */
  struct rule rules[REGISTERS];
};

struct description {
  const uint8_t *cie_code, *cie_end, *code, *end;
  uintptr_t start;
  uint64_t code_align;
  int64_t data_align;
  unsigned return_register;
  uint8_t encoding;
  bool signal;
};

struct walk {
  uintptr_t pc, reg[REGISTERS];
  uintptr_t low, high; /* stack memory that is known to be readable */
  bool exact;          /* pc is the next instruction to run, not one after a call */
};

/* ---- stack memory ------------------------------------------------------------------------------------------------ */

/* The kernel reads the set before it looks at what to do with it. */
static bool can_read(uintptr_t address) {
  return mu_sys_call(MU_SYS_rt_sigprocmask, ~0L, (long)address, 0, WORD, 0, 0) != -EFAULT;
}

static bool read_word(struct walk *w, uintptr_t address, uintptr_t *value) {
  enum { PAGE = 4096 }; /* of all sizes of pages the smallest */
  if (address % WORD) return false;
  if (address < w->low || address >= w->high) {
    uintptr_t page = address & ~(uintptr_t)(PAGE - 1);
    if (page == 0 || !can_read(address)) return false;
    if (page != w->high) w->low = page;
    w->high = page + PAGE;
  }
  *value = *(const uintptr_t *)address;
  return true;
}

/* ---- numbers ----------------------------------------------------------------------------------------------------- */

static uint64_t unsigned_leb(const uint8_t **at) {
  uint64_t value = 0;
  for (unsigned shift = 0;; shift += 7) {
    uint8_t byte = *(*at)++;
    if (shift < 64) value |= (uint64_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80)) return value;
  }
}

static int64_t signed_leb(const uint8_t **at) {
  uint64_t value = 0;
  for (unsigned shift = 0;;) {
    uint8_t byte = *(*at)++;
    if (shift < 64) value |= (uint64_t)(byte & 0x7f) << shift;
    shift += 7;
    if (byte & 0x80) continue;
    if ((byte & 0x40) && shift < 64) value |= ~(uint64_t)0 << shift;
    return (int64_t)value;
  }
}

/* A number of so many bytes, sign-extended when asked for. */
static uint64_t fixed(const uint8_t **at, unsigned bytes, bool is_signed) {
  uint64_t value = 0;
  memcpy(&value, *at, bytes); /* both machines are little-endian */
  *at += bytes;
  unsigned unused = 64 - 8 * bytes;
  return is_signed ? (uint64_t)((int64_t)(value << unused) >> unused) : value;
}

/* An encoded pointer; *ok becomes false for what no compiler of these machines writes. */
static uintptr_t encoded(const uint8_t **at, uint8_t encoding, bool *ok) {
  static const uint8_t bytes[16] = {[0] = 8, [2] = 2, [3] = 4, [4] = 8, [10] = 2, [11] = 4, [12] = 8};
  const uint8_t *from = *at;
  unsigned n = bytes[encoding & 15];
  if (encoding == 0xff) return 0;
  if (n == 0 || (encoding & 0x70 & ~0x10)) {
    *ok = false;
    return 0;
  }
  uintptr_t value = fixed(at, n, encoding & 8);
  return value && (encoding & 0x10) ? value + (uintptr_t)from : value;
}

/* ---- the description of a frame ---------------------------------------------------------------------------------- */

struct module {
  uintptr_t pc, start, end;
  const uint8_t *frames; /* .eh_frame_hdr */
};

static int look_at_module(struct dl_phdr_info *info, size_t size, void *data) {
  struct module *m = data;
  const ElfW(Phdr) *frames = NULL;
  bool inside = false;
  (void)size;
  for (unsigned i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *p = &info->dlpi_phdr[i];
    uintptr_t start = info->dlpi_addr + p->p_vaddr;
    if (p->p_type == PT_GNU_EH_FRAME) frames = p;
    if (p->p_type != PT_LOAD || m->pc < start || m->pc - start >= p->p_memsz) continue;
    inside = true;
    m->start = start;
    m->end = start + p->p_memsz;
  }
  if (inside && frames) m->frames = (const uint8_t *)(info->dlpi_addr + frames->p_vaddr);
  return inside;
}

#ifdef DLFO_EH_SEGMENT_TYPE
int _dl_find_object(void *address, struct dl_find_object *result) __attribute__((weak));

static bool find_without_lock(struct module *m, bool *found) {
  struct dl_find_object object;
  if (!_dl_find_object) return false;
  *found = _dl_find_object((void *)m->pc, &object) == 0;
  if (*found)
    *m = (struct module){m->pc, (uintptr_t)object.dlfo_map_start, (uintptr_t)object.dlfo_map_end, object.dlfo_eh_frame};
  return true;
}
#else
static bool find_without_lock(struct module *m, bool *found) {
  (void)m;
  (void)found;
  return false;
}
#endif

static bool find_module(uintptr_t pc, struct module *m) {
  bool found = false;
  *m = (struct module){.pc = pc};
  if (!find_without_lock(m, &found)) found = dl_iterate_phdr(look_at_module, m) == 1;
  return found;
}

/* The last entry of the sorted table that begins at or before pc; NULL when there is none. */
static const uint8_t *search(const uint8_t *header, uintptr_t pc) {
  enum { VERSION = 1, SDATA4 = 0x0b, UDATA4 = 0x03, DATA_RELATIVE = 0x30 };
  if (!header || header[0] != VERSION || (header[1] & 7) != 3 || header[2] != UDATA4 ||
      header[3] != (DATA_RELATIVE | SDATA4))
    return NULL;
  uint32_t n, low = 0;
  memcpy(&n, header + 8, sizeof n);
  const int32_t(*table)[2] = (const void *)(header + 12);
  intptr_t wanted = (intptr_t)(pc - (uintptr_t)header);
  while (low < n) {
    uint32_t middle = low + (n - low) / 2;
    if (table[middle][0] <= wanted)
      low = middle + 1;
    else
      n = middle;
  }
  return low ? header + table[low - 1][1] : NULL;
}

static bool read_cie(const uint8_t *at, struct description *d) {
  bool ok = true;
  uint32_t length = (uint32_t)fixed(&at, 4, false);
  d->cie_end = at + length;
  if (length == UINT32_MAX || fixed(&at, 4, false) != 0) return false;
  uint8_t version = *at++;
  const char *augmentation = (const char *)at;
  at += strlen(augmentation) + 1;
  d->code_align = unsigned_leb(&at);
  d->data_align = signed_leb(&at);
  d->return_register = (unsigned)(version == 1 ? *at++ : unsigned_leb(&at));
  if (*augmentation != 'z' || d->return_register >= REGISTERS) return false;
  uint64_t bytes = unsigned_leb(&at);
  d->cie_code = at + bytes;
  for (augmentation++; ok && *augmentation; augmentation++) {
    if (*augmentation == 'R') d->encoding = *at++;
    if (*augmentation == 'L') at++;
    if (*augmentation == 'S') d->signal = true;
    if (*augmentation == 'P') {
      uint8_t encoding = *at++;
      encoded(&at, encoding, &ok);
    }
  }
  return ok;
}

static bool describe(uintptr_t pc, struct description *d) {
  struct module m;
  if (!find_module(pc, &m)) return false;
  const uint8_t *at = search(m.frames, pc);
  if (!at) return false;
  bool ok = true;
  memset(d, 0, sizeof *d);
  uint32_t length = (uint32_t)fixed(&at, 4, false);
  if (length == UINT32_MAX) return false;
  d->end = at + length;
  const uint8_t *cie = at;
  cie -= fixed(&at, 4, false);
  if (!read_cie(cie, d)) return false;
  d->start = encoded(&at, d->encoding, &ok);
  uintptr_t bytes = encoded(&at, d->encoding & 15, &ok);
  uint64_t augmentation = unsigned_leb(&at);
  d->code = at + augmentation;
  return ok && pc - d->start < bytes;
}

/* ---- expressions ------------------------------------------------------------------------------------------------- */

struct stack {
  uintptr_t of[MAX_EXPRESSION_DEPTH];
  unsigned depth;
};

static bool push(struct stack *s, uintptr_t value) {
  if (s->depth == MAX_EXPRESSION_DEPTH) return false;
  s->of[s->depth++] = value;
  return true;
}

static bool two_operands(struct stack *s, uint8_t op) {
  if (s->depth < 2) return false;
  uintptr_t b = s->of[--s->depth], a = s->of[s->depth - 1], r;
  switch (op) {
  case 0x1a:
    r = a & b;
    break;
  case 0x1c:
    r = a - b;
    break;
  case 0x21:
    r = a | b;
    break;
  case 0x22:
    r = a + b;
    break;
  case 0x24:
    r = b < 64 ? a << b : 0;
    break;
  case 0x25:
    r = b < 64 ? a >> b : 0;
    break;
  case 0x29:
    r = a == b;
    break;
  case 0x2a:
    r = (intptr_t)a >= (intptr_t)b;
    break;
  case 0x2b:
    r = (intptr_t)a > (intptr_t)b;
    break;
  case 0x2c:
    r = (intptr_t)a <= (intptr_t)b;
    break;
  case 0x2d:
    r = (intptr_t)a < (intptr_t)b;
    break;
  case 0x2e:
    r = a != b;
    break;
  default:
    return false;
  }
  s->of[s->depth - 1] = r;
  return true;
}

static bool one_step(struct walk *w, struct stack *s, const uint8_t **at) {
  uint8_t op = *(*at)++;
  if (op >= 0x30 && op <= 0x4f) return push(s, op - 0x30U); /* a literal */
  if (op >= 0x70 && op <= 0x8f) {                           /* a register and an offset */
    unsigned r = op - 0x70U;
    uintptr_t offset = (uintptr_t)signed_leb(at);
    return r < REGISTERS && push(s, w->reg[r] + offset);
  }
  if (op >= 0x08 && op <= 0x0f) return push(s, fixed(at, 1U << ((op - 8) / 2), op & 1));
  switch (op) {
  case 0x06:
    return s->depth && read_word(w, s->of[s->depth - 1], &s->of[s->depth - 1]);
  case 0x10:
    return push(s, unsigned_leb(at));
  case 0x11:
    return push(s, (uintptr_t)signed_leb(at));
  case 0x23:
    return s->depth && (s->of[s->depth - 1] += unsigned_leb(at), true);
  case 0x96:
    return true; /* nop */
  default:
    return two_operands(s, op);
  }
}

/* A block: its length, then operations. cfa: on the stack first, where the rule is one of a register. */
static bool evaluate(struct walk *w, const uint8_t *at, const uintptr_t *cfa, uintptr_t *result) {
  struct stack s = {.depth = 0};
  uint64_t length = unsigned_leb(&at);
  const uint8_t *end = at + length;
  if (cfa) push(&s, *cfa);
  while (at < end)
    if (!one_step(w, &s, &at)) return false;
  if (!s.depth) return false;
  *result = s.of[s.depth - 1];
  return true;
}

/* ---- the instructions of a frame --------------------------------------------------------------------------------- */

struct machine {
  const struct description *d;
  struct row now, initial, saved[MAX_STATES];
  unsigned depth;
  uintptr_t at; /* the address that `now` begins to hold at */
};

static void set(struct machine *m, uint64_t r, enum rule_kind kind, intptr_t value) {
  if (r < REGISTERS) m->now.rules[r] = (struct rule){kind, value};
}

static void restore(struct machine *m, uint64_t r) {
  if (r < REGISTERS) m->now.rules[r] = m->initial.rules[r];
}

static bool set_cfa(struct machine *m, uint64_t r, intptr_t offset) {
  m->now.cfa_is_expression = false;
  m->now.cfa_register = (unsigned)r;
  m->now.cfa = offset;
  return r < REGISTERS;
}

static const uint8_t *skip_block(const uint8_t *at) {
  uint64_t length = unsigned_leb(&at);
  return at + length;
}

static bool save_state(struct machine *m) {
  if (m->depth == MAX_STATES) return false;
  m->saved[m->depth++] = m->now;
  return true;
}

static bool restore_state(struct machine *m) {
  if (!m->depth) return false;
  m->now = m->saved[--m->depth];
  return true;
}

/* Instructions that have an operand of their own; `op` is not one of the three packed ones. */
static bool long_instruction(struct machine *m, uint8_t op, const uint8_t **at) {
  int64_t scale = m->d->data_align;
  uint64_t r = 0;
  bool has_register = (op >= 0x05 && op <= 0x09) || op == 0x0c || op == 0x0d || op == 0x10 || op == 0x11 ||
                      op == 0x12 || op == 0x14 || op == 0x15 || op == 0x16 || op == 0x2f;
  if (has_register) r = unsigned_leb(at);
  bool ok = true;
  switch (op) {
  case 0x00:
    break;
  case 0x01:
    m->at = encoded(at, m->d->encoding, &ok);
    break;
  case 0x02:
    m->at += fixed(at, 1, false) * m->d->code_align;
    break;
  case 0x03:
    m->at += fixed(at, 2, false) * m->d->code_align;
    break;
  case 0x04:
    m->at += fixed(at, 4, false) * m->d->code_align;
    break;
  case 0x05:
    set(m, r, AT_OFFSET, (int64_t)unsigned_leb(at) * scale);
    break;
  case 0x06:
    restore(m, r);
    break;
  case 0x07:
    set(m, r, UNDEFINED, 0);
    break;
  case 0x08:
    set(m, r, SAME, 0);
    break;
  case 0x09:
    set(m, r, IN_REGISTER, (intptr_t)unsigned_leb(at));
    break;
  case 0x0a:
    return save_state(m);
  case 0x0b:
    return restore_state(m);
  case 0x0c:
    return set_cfa(m, r, (intptr_t)unsigned_leb(at));
  case 0x0d:
    return set_cfa(m, r, m->now.cfa);
  case 0x0e:
    m->now.cfa = (intptr_t)unsigned_leb(at);
    break;
  case 0x0f:
    m->now.cfa_is_expression = true;
    m->now.cfa = (intptr_t)*at;
    *at = skip_block(*at);
    break;
  case 0x10:
  case 0x16:
    set(m, r, op == 0x10 ? AT_EXPRESSION : IS_EXPRESSION, (intptr_t)*at);
    *at = skip_block(*at);
    break;
  case 0x11:
    set(m, r, AT_OFFSET, signed_leb(at) * scale);
    break;
  case 0x12:
    return set_cfa(m, r, signed_leb(at) * scale);
  case 0x13:
    m->now.cfa = signed_leb(at) * scale;
    break;
  case 0x14:
    set(m, r, IS_OFFSET, (int64_t)unsigned_leb(at) * scale);
    break;
  case 0x15:
    set(m, r, IS_OFFSET, signed_leb(at) * scale);
    break;
  case 0x2d:
    break; /* aarch64: the return address is signed; we strip it anyway */
  case 0x2e:
    unsigned_leb(at);
    break; /* size of arguments */
  case 0x2f:
    set(m, r, AT_OFFSET, -(int64_t)unsigned_leb(at) * scale);
    break;
  default:
    return false;
  }
  return ok;
}

/* Up to the first that holds only behind pc. */
static bool run(struct machine *m, const uint8_t *at, const uint8_t *end, uintptr_t pc) {
  while (at < end && m->at <= pc) {
    uint8_t op = *at++, low = op & 0x3f;
    switch (op >> 6) {
    case 1:
      m->at += low * m->d->code_align;
      break;
    case 2:
      set(m, low, AT_OFFSET, (int64_t)unsigned_leb(&at) * m->d->data_align);
      break;
    case 3:
      restore(m, low);
      break;
    default:
      if (!long_instruction(m, op, &at)) return false;
    }
  }
  return true;
}

static bool find_row(struct machine *m, uintptr_t pc) {
  memset(&m->now, 0, sizeof m->now);
  m->depth = 0;
  m->at = m->d->start;
  if (!run(m, m->d->cie_code, m->d->cie_end, UINTPTR_MAX)) return false;
  m->initial = m->now;
  m->at = m->d->start;
  return run(m, m->d->code, m->d->end, pc);
}

/* ---- from frame to frame ----------------------------------------------------------------------------------------- */

static bool value_of(struct walk *w, const struct walk *callee, const struct rule *rule, uintptr_t cfa, unsigned r,
                     uintptr_t *value) {
  struct walk *reader = w; /* what is readable is remembered; registers are the callee's still */
  switch (rule->kind) {
  case SAME:
    *value = r == STACK ? cfa : callee->reg[r];
    return true;
  case UNDEFINED:
    *value = 0;
    return true;
  case AT_OFFSET:
    return read_word(reader, cfa + (uintptr_t)rule->value, value);
  case IS_OFFSET:
    *value = cfa + (uintptr_t)rule->value;
    return true;
  case IN_REGISTER:
    if (rule->value < 0 || rule->value >= REGISTERS) return false;
    *value = callee->reg[rule->value];
    return true;
  case AT_EXPRESSION:
  case IS_EXPRESSION:
    break;
  }
  struct walk copy = *callee;
  if (!evaluate(&copy, (const uint8_t *)rule->value, &cfa, value)) return false;
  return rule->kind == IS_EXPRESSION || read_word(reader, *value, value);
}

static uintptr_t without_signature(uintptr_t address) {
#ifdef __aarch64__
  register uintptr_t x30 __asm__("x30") = address;
  __asm__("hint #7" : "+r"(x30)); /* XPACLRI; nothing where addresses are not signed */
  return x30;
#else
  return address;
#endif
}

/* The caller of a frame that has a description. False: there is none, or it makes no sense. */
static bool up_by_description(struct walk *w, const struct description *d) {
  struct machine m = {.d = d};
  if (!find_row(&m, w->exact ? w->pc : w->pc - 1)) return false;
  uintptr_t cfa;
  if (!m.now.cfa_is_expression)
    cfa = w->reg[m.now.cfa_register] + (uintptr_t)m.now.cfa;
  else if (!evaluate(w, (const uint8_t *)m.now.cfa, NULL, &cfa))
    return false;
  /* Stacks grow downwards; a handler may have run on another one. */
  if (cfa <= w->reg[STACK] && !d->signal) return false;
  struct walk callee = *w;
  for (unsigned r = 0; r < REGISTERS; r++)
    if (!value_of(w, &callee, &m.now.rules[r], cfa, r, &w->reg[r])) return false;
  if (m.now.rules[d->return_register].kind == UNDEFINED) return false; /* the outermost frame */
  uintptr_t pc = without_signature(w->reg[d->return_register]);
  if (pc == callee.pc && cfa == callee.reg[STACK]) return false;
  w->pc = pc;
  w->exact = d->signal;
  return true;
}

/* Both machines keep the caller's frame pointer and the return address side by side. */
static bool up_by_frame_pointer(struct walk *w) {
  uintptr_t frame = w->reg[FRAME], next, pc;
  if (frame < w->reg[STACK] || !read_word(w, frame, &next) || !read_word(w, frame + WORD, &pc)) return false;
  w->reg[FRAME] = next;
  w->reg[STACK] = frame + 2 * WORD;
  w->pc = w->reg[RETURN] = without_signature(pc);
  w->exact = false;
  return true;
}

static bool up(struct walk *w) {
  struct description d;
  bool ok = describe(w->exact ? w->pc : w->pc - 1, &d) ? up_by_description(w, &d) : up_by_frame_pointer(w);
  return ok && w->pc > 4096;
}

/* The registers that a callee saves, and where we are. Must be one statement: the description is of one address. */
static inline __attribute__((always_inline)) void here(struct walk *w) {
#if defined(__x86_64__)
  __asm__ volatile("leaq 0(%%rip), %%rax\n\t"
                   "movq %%rax, (%0)\n\t"
                   "movq %%rbx, 3*8+8(%0)\n\t"
                   "movq %%rbp, 6*8+8(%0)\n\t"
                   "movq %%rsp, 7*8+8(%0)\n\t"
                   "movq %%r12, 12*8+8(%0)\n\t"
                   "movq %%r13, 13*8+8(%0)\n\t"
                   "movq %%r14, 14*8+8(%0)\n\t"
                   "movq %%r15, 15*8+8(%0)"
                   :
                   : "r"(w)
                   : "rax", "memory");
#else
  __asm__ volatile("adr x9, .\n\t"
                   "str x9, [%0]\n\t"
                   "stp x19, x20, [%0, #160]\n\t"
                   "stp x21, x22, [%0, #176]\n\t"
                   "stp x23, x24, [%0, #192]\n\t"
                   "stp x25, x26, [%0, #208]\n\t"
                   "stp x27, x28, [%0, #224]\n\t"
                   "stp x29, x30, [%0, #240]\n\t"
                   "mov x9, sp\n\t"
                   "str x9, [%0, #256]"
                   :
                   : "r"(w)
                   : "x9", "memory");
#endif
}
_Static_assert(offsetof(struct walk, reg) == 8, "as in the instructions above");

/* Our own frames are no news; in a static program they cannot be told from others. */
static bool find_ourselves(struct module *m) {
  return find_module((uintptr_t)&mu_unwind, m) && getauxval(AT_ENTRY) - m->start >= m->end - m->start;
}

MU_NOINLINE unsigned mu_unwind(uintptr_t *pcs, unsigned room) {
  struct walk w = {.pc = 0};
  struct module ours;
  bool skip = find_ourselves(&ours);
  unsigned n = 0;
  here(&w);
  if (RETURN != 30) w.reg[RETURN] = w.pc; /* x86-64: its number stands for the instruction pointer */
  w.exact = true;
  while (n < room && up(&w)) {
    uintptr_t pc = w.exact ? w.pc : w.pc - 1;
    if (skip && pc - ours.start < ours.end - ours.start) continue;
    skip = false;
    pcs[n++] = pc;
  }
  return n;
}
