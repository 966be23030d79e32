/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd/program.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* ---- finding it ----------------------------------------------------------------------------------------------------
 */

static enum status can_run(const char *path) {
  struct stat s;
  if (stat(path, &s) < 0) return errno == ENOENT || errno == ENOTDIR ? NOT_FOUND : CANNOT_RUN;
  return S_ISREG(s.st_mode) && access(path, X_OK) == 0 ? DONE : CANNOT_RUN;
}

enum status program_find(const char *name, char path[4096]) {
  if (!*name) return NOT_FOUND;
  if (strchr(name, '/')) {
    snprintf(path, 4096, "%s", name);
    return can_run(path);
  }
  const char *at = getenv("PATH");
  enum status best = NOT_FOUND;
  for (at = at ? at : "/usr/local/bin:/usr/bin:/bin"; at; at = strchr(at, ':'), at = at ? at + 1 : NULL) {
    size_t length = strcspn(at, ":");
    if ((size_t)snprintf(path, 4096, "%.*s%s%s", (int)length, at, length ? "/" : "", name) >= 4096) continue;
    enum status status = can_run(path);
    if (status == DONE) return DONE;
    if (status == CANNOT_RUN) best = CANNOT_RUN;
  }
  return best;
}

/* ---- what kind of file ---------------------------------------------------------------------------------------------
 */

struct image {
  const char *bytes;
  size_t length;
};

static bool map_file(const char *path, struct image *f) {
  struct stat s;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  *f = (struct image){NULL, 0};
  if (fd < 0) return false;
  if (fstat(fd, &s) == 0 && s.st_size > 0) {
    void *at = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (at != MAP_FAILED) *f = (struct image){at, (size_t)s.st_size};
  }
  close(fd);
  return f->bytes != NULL;
}

static void unmap_file(struct image *f) {
  if (f->bytes) munmap((void *)(uintptr_t)f->bytes, f->length);
}

static const void *range(const struct image *f, uint64_t at, uint64_t length) {
  return at <= f->length && length <= f->length - at ? f->bytes + at : NULL;
}

static const ElfW(Ehdr) * header(const struct image *f) {
  const ElfW(Ehdr) *head = range(f, 0, sizeof *head);
  return head && memcmp(head->e_ident, ELFMAG, SELFMAG) == 0 ? head : NULL;
}

/* A string of the file, if it ends within it. */
static const char *string_at(const struct image *f, uint64_t at) {
  return at < f->length && memchr(f->bytes + at, 0, f->length - at) ? f->bytes + at : NULL;
}

static const ElfW(Phdr) * segment(const struct image *f, uint32_t type) {
  const ElfW(Ehdr) *head = header(f);
  for (unsigned i = 0; i < head->e_phnum; i++) {
    const ElfW(Phdr) *p = range(f, head->e_phoff + (uint64_t)i * sizeof *p, sizeof *p);
    if (p && p->p_type == type) return p;
  }
  return NULL;
}

static const ElfW(Shdr) * section(const struct image *f, unsigned i) {
  const ElfW(Ehdr) *head = header(f);
  return i < head->e_shnum ? range(f, head->e_shoff + (uint64_t)i * sizeof(ElfW(Shdr)), sizeof(ElfW(Shdr))) : NULL;
}

static const ElfW(Shdr) * section_named(const struct image *f, const char *name) {
  const ElfW(Shdr) *names = section(f, header(f)->e_shstrndx), *s;
  for (unsigned i = 0; names && (s = section(f, i)); i++) {
    const char *its = string_at(f, names->sh_offset + s->sh_name);
    if (its && strcmp(its, name) == 0) return s;
  }
  return NULL;
}

/* The first of these functions that a symbol table of that type defines, or wants from elsewhere; or NULL. */
static const char *has_symbol(const struct image *f, uint32_t table_type, const char *const *names, bool elsewhere) {
  const ElfW(Shdr) * table, *strings;
  for (unsigned i = 0; (table = section(f, i)); i++) {
    if (table->sh_type != table_type || !(strings = section(f, table->sh_link))) continue;
    for (uint64_t at = 0; at + sizeof(ElfW(Sym)) <= table->sh_size; at += sizeof(ElfW(Sym))) {
      const ElfW(Sym) *s = range(f, table->sh_offset + at, sizeof *s);
      if (!s) break;
      if ((s->st_shndx == SHN_UNDEF) != elsewhere || (!elsewhere && ELF64_ST_TYPE(s->st_info) != STT_FUNC)) continue;
      const char *its = string_at(f, strings->sh_offset + s->st_name);
      for (unsigned k = 0; its && names[k]; k++)
        if (strcmp(its, names[k]) == 0) return names[k];
    }
  }
  return NULL;
}

static const char *defines(const struct image *f, uint32_t table_type, const char *const *names) {
  return has_symbol(f, table_type, names, false);
}

/* ---- programs that are left alone, as src/aside.c has it -----------------------------------------------------------
 */

static bool lists(const char *words, const char *separators, const char *name) {
  size_t want = strlen(name);
  for (size_t n; *words; words += n + (words[n] != 0)) {
    n = strcspn(words, separators);
    if (n && n == want && memcmp(words, name, n) == 0) return true;
  }
  return false;
}

static bool file_lists(const char *name) {
  char *text = read_file(DENY_FILE, NULL);
  bool found = false, comment = false;
  for (char *c = text; c && *c; c++) {
    if (*c == '#') comment = true;
    if (*c == '\n') comment = false;
    if (comment) *c = ' ';
  }
  if (text) found = lists(text, " \t\r\n", name);
  free(text);
  return found;
}

bool program_denied(const char *path, const char *real, const char *words, char why[512]) {
  const char *paths[] = {path, real};
  for (int i = 0; i < 2; i++) {
    const char *slash = strrchr(paths[i], '/'), *name = slash ? slash + 1 : paths[i];
    bool by_variable = words && lists(words, ":", name);
    if (!by_variable && !file_lists(name)) continue;
    snprintf(why, 512, "%s says that '%s' is to be left alone", by_variable ? "MESH_UFFD_DENY" : DENY_FILE, name);
    return true;
  }
  return false;
}

/* ---- the effect ----------------------------------------------------------------------------------------------------
 */

static bool runs_secure(const char *path, char *why) {
  struct stat s;
  if (stat(path, &s) < 0) return false;
  if ((s.st_mode & S_ISUID) && s.st_uid != geteuid()) {
    snprintf(why, 512, "it is set-user-ID: the dynamic linker ignores LD_PRELOAD");
    return true;
  }
  if ((s.st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) && s.st_gid != getegid()) {
    snprintf(why, 512, "it is set-group-ID: the dynamic linker ignores LD_PRELOAD");
    return true;
  }
  if (geteuid() != 0 && getxattr(path, "security.capability", NULL, 0) > 0) {
    snprintf(why, 512, "the file has capabilities: the dynamic linker ignores LD_PRELOAD");
    return true;
  }
  return false;
}

/* Of a script the interpreter counts. */
static bool interpreter(const struct image *f, char *path) {
  if (f->length < 3 || memcmp(f->bytes, "#!", 2) != 0) return false;
  size_t at = 2, end;
  while (at < f->length && (f->bytes[at] == ' ' || f->bytes[at] == '\t')) at++;
  for (end = at; end < f->length && !strchr(" \t\n", f->bytes[end]); end++) {
  }
  if (end == at || end - at >= 4096) return false;
  snprintf(path, 4096, "%.*s", (int)(end - at), f->bytes + at);
  if (strcmp(path, "/usr/bin/env") != 0 && strcmp(path, "/bin/env") != 0) return true;
  char name[256];
  size_t n = 0;
  for (; end < f->length && (f->bytes[end] == ' ' || f->bytes[end] == '\t'); end++) {
  }
  for (; end < f->length && n < sizeof name - 1 && !strchr(" \t\n", f->bytes[end]); end++) name[n++] = f->bytes[end];
  name[n] = 0;
  return *name != '-' && program_find(name, path) == DONE;
}

static const char *machine(unsigned m) {
  return m == EM_X86_64 ? "x86-64" : m == EM_AARCH64 ? "aarch64" : m == EM_386 ? "x86 (32 bits)" : "another machine";
}

#if defined(__x86_64__)
enum { OUR_MACHINE = EM_X86_64 };
#else
enum { OUR_MACHINE = EM_AARCH64 };
#endif

/* Files that name an interpreter of programs with heaps of their own. */
static const struct {
  const char *name, *why, *mend;
} known[] = {
    {"java", "Java objects live in a heap of the virtual machine's own; only what native code allocates is affected",
     ""},
    {"node", "JavaScript objects live in a heap of V8's own; buffers and native code are affected", ""},
    {"python3", "Python takes objects up to 512 bytes from pools of its own", "set PYTHONMALLOC=malloc"},
    {"python", "Python takes objects up to 512 bytes from pools of its own", "set PYTHONMALLOC=malloc"},
};

static enum effect known_heap(const char *path, char *why, char *mend) {
  const char *set = getenv("PYTHONMALLOC"), *base = strrchr(path, '/');
  base = base ? base + 1 : path;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    size_t n = strlen(known[i].name);
    bool python = strncmp(known[i].name, "python", 6) == 0;
    if (strncmp(base, known[i].name, n) != 0 || (base[n] && base[n] != '.')) continue;
    if (python && set && strncmp(set, "malloc", 6) == 0) continue;
    snprintf(why, 512, "%s", known[i].why);
    snprintf(mend, 512, "%s", known[i].mend);
    return PARTLY;
  }
  return AFFECTED;
}

static enum effect effect_of_elf(const struct image *f, const char *path, char *why, char *mend) {
  static const char *const mallocs[] = {"malloc", NULL};
  static const char *const others[] = {"je_malloc", "mi_malloc", "tc_malloc", "rpmalloc", "scalable_malloc", NULL};
  static const char *const sanitizers[] = {"__asan_init", "__hwasan_init", "__msan_init", "__tsan_init", NULL};
  const ElfW(Ehdr) *head = header(f);
  if (head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_machine != OUR_MACHINE) {
    snprintf(why, 512, "it is for %s, the library for %s", machine(head->e_machine), machine(OUR_MACHINE));
    return UNAFFECTED;
  }
  if (section_named(f, ".go.buildinfo") && !segment(f, PT_INTERP)) {
    snprintf(why, 512, "it is written in Go, which has a heap of its own, and is linked statically");
    return UNAFFECTED;
  }
  const ElfW(Phdr) *loader = segment(f, PT_INTERP);
  if (!loader) {
    snprintf(why, 512, "it is linked statically: nothing can be preloaded");
    snprintf(mend, 512, "link it with the library: cc -static ... $(pkg-config --static --libs mesh-uffd)");
    return UNAFFECTED;
  }
  const char *its = string_at(f, loader->p_offset);
  if (its && strstr(its, "/ld-musl-")) {
    snprintf(why, 512, "it uses musl, and this library was built for the GNU C library");
    snprintf(mend, 512, "build the library with musl-gcc");
    return UNFIT;
  }
  const char *shared = has_symbol(f, SHT_DYNSYM, sanitizers, true);
  if (shared || defines(f, SHT_DYNSYM, sanitizers)) {
    bool first = shared && shared == sanitizers[0]; /* gcc's AddressSanitizer */
    snprintf(why, 512, "it is built with a sanitizer, which has a malloc of its own%s",
             first ? ", and refuses to be loaded after the library" : "");
    snprintf(mend, 512, "build it without -fsanitize");
    return first ? UNFIT : UNAFFECTED;
  }
  if (defines(f, SHT_DYNSYM, mallocs) || (defines(f, SHT_SYMTAB, mallocs) && !segment(f, PT_DYNAMIC))) {
    snprintf(why, 512, "it contains a malloc of its own, which comes before any library's");
    snprintf(mend, 512, "build it without its allocator (often a configure option, e.g. MALLOC=libc)");
    return UNAFFECTED;
  }
  if (section_named(f, ".go.buildinfo")) {
    snprintf(why, 512, "it is written in Go, which has a heap of its own; only C code in it is affected");
    return PARTLY;
  }
  const char *other = defines(f, SHT_SYMTAB, others);
  if (!other) other = defines(f, SHT_DYNSYM, others);
  if (!other && defines(f, SHT_SYMTAB, mallocs)) other = mallocs[0];
  if (other) {
    snprintf(why, 512, "it contains an allocator of its own (%s); what it takes from there is not affected", other);
    snprintf(mend, 512, "build it without its allocator (often a configure option, e.g. MALLOC=libc)");
    return PARTLY;
  }
  return known_heap(path, why, mend);
}

enum effect program_effect(const char *path, const char *denied, char why[512], char mend[512]) {
  struct image f;
  char next[4096], real[PATH_MAX];
  enum effect effect = AFFECTED;
  *why = *mend = 0;
  if (runs_secure(path, why)) {
    snprintf(mend, 512, "link it with the library; /etc/ld.so.preload would do too, for every program of the machine");
    return UNAFFECTED;
  }
  if (!realpath(path, real)) snprintf(real, sizeof real, "%s", path);
  bool readable = map_file(path, &f); /* else it may be run but not read */
  bool script = readable && interpreter(&f, next) && strcmp(next, path) != 0;
  /* env starts the interpreter anew, by its own name. */
  bool by_env =
      script && f.length > 14 && (memcmp(f.bytes, "#!/usr/bin/env", 14) == 0 || memcmp(f.bytes, "#!/bin/env", 10) == 0);
  if (!by_env && program_denied(path, real, denied, why))
    effect = UNAFFECTED;
  else if (script)
    effect = program_effect(next, denied, why, mend);
  else if (readable && header(&f))
    effect = effect_of_elf(&f, real, why, mend);
  unmap_file(&f);
  return effect;
}

/* ---- the library ---------------------------------------------------------------------------------------------------
 */

bool library_find(char path[4096]) {
  char self[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  self[n > 0 ? n : 0] = 0;
  for (int up = 0; up < 2; up++) { /* in the build tree this is cmd/mesh-uffd; installed, bin/mesh-uffd */
    char *slash = strrchr(self, '/');
    if (!slash) break;
    *slash = 0;
  }
  /* What is moved as a whole keeps its shape: the library is where it was, as seen from the prefix. */
  size_t prefix = strlen(PREFIX);
  const char *places[] = {"/.libs/libmesh-uffd.so", strncmp(LIBDIR, PREFIX, prefix) == 0 ? &LIBDIR[prefix] : "/lib"};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++)
    if (snprintf(path, 4096, "%s%s%s", self, places[i], i ? "/libmesh-uffd.so.0" : "") < 4096 &&
        access(path, R_OK) == 0)
      return true;
  snprintf(path, 4096, "%s/libmesh-uffd.so.0", LIBDIR);
  return access(path, R_OK) == 0;
}

bool library_fits(const char *path, char why[512]) {
  struct image f;
  bool fits = false;
  if (!map_file(path, &f)) {
    snprintf(why, 512, "%s", strerror(errno));
    return false;
  }
  const ElfW(Ehdr) *head = header(&f);
  if (!head || head->e_type != ET_DYN || !segment(&f, PT_DYNAMIC) || !section_named(&f, ".note.mesh-uffd"))
    snprintf(why, 512, "it is not libmesh-uffd");
  else if (head->e_machine != OUR_MACHINE)
    snprintf(why, 512, "it is for %s", machine(head->e_machine));
  else
    fits = true;
  unmap_file(&f);
  return fits;
}

void library_preload(const char *path) {
  const char *before = getenv("LD_PRELOAD");
  char *all;
  if (strpbrk(path, ": \t"))
    die(FAILED, "'%s' cannot be preloaded: the dynamic linker takes a blank or colon for the end of a name", path);
  if (asprintf(&all, "%s%s%s", path, before && *before ? ":" : "", before ? before : "") < 0 ||
      setenv("LD_PRELOAD", all, 1) < 0)
    die(FAILED, "no memory");
  free(all);
}
