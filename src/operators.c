/* SPDX-License-Identifier: Apache-2.0 */
/*
 * C++ operator new and delete, by their mangled names (Itanium C++ ABI, where size_t is unsigned long). The C++ runtime
 * is not linked: its parts are found when they are needed, in a process that has it. Compiled with -fexceptions, since
 * std::bad_alloc passes through here.
 */
#include "src/entry.h"
#include <dlfcn.h>
#include <stdlib.h>

typedef void (*new_handler)(void);
typedef new_handler (*get_new_handler)(void);
typedef void (*throw_bad_alloc)(void);

/* The function in the C++ runtime that the caller's own module uses, or NULL. */
static void *runtime_function(const char *name, const void *caller) {
  void *f = dlsym(RTLD_NEXT, name);
  Dl_info info;
  if (f || !dladdr(caller, &info)) return f;
  void *module = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (!module) return NULL;
  f = dlsym(module, name);
  dlclose(module);
  return f;
}

static void *allocate(size_t align, size_t size) {
  return align ? mu_memalign(align, size) : mu_malloc(size);
}

/* new's loop: the new handler as long as there is one, then std::bad_alloc. */
static MU_COLD void *try_again(size_t align, size_t size, const void *caller) {
  get_new_handler get = (get_new_handler)runtime_function("_ZSt15get_new_handlerv", caller);
  new_handler handler;
  while (get && (handler = get())) {
    handler();
    void *p = allocate(align, size);
    if (p) return p;
  }
  throw_bad_alloc raise_ = (throw_bad_alloc)runtime_function("_ZSt17__throw_bad_allocv", caller);
  if (raise_) raise_();
  abort();
}

/* C cannot catch what a new handler throws; the C++ runtime's own nothrow new calls ours and does. */
static MU_COLD void *try_again_nothrow(const char *name, size_t align, size_t size, const void *tag,
                                       const void *caller) {
  void *f = runtime_function(name, caller);
  if (!f) return NULL;
  return align ? ((void *(*)(size_t, size_t, const void *))f)(size, align, tag)
               : ((void *(*)(size_t, const void *))f)(size, tag);
}

#define CALLER __builtin_return_address(0)
#define NEW(name)                                                                                                      \
  MU_EXPORT void *name(size_t size);                                                                                   \
  void *name(size_t size) {                                                                                            \
    void *p = mu_malloc(size);                                                                                         \
    return MU_LIKELY(p != NULL) ? p : try_again(0, size, CALLER);                                                      \
  }
#define NEW_NOTHROW(name)                                                                                              \
  MU_EXPORT void *name(size_t size, const void *tag);                                                                  \
  void *name(size_t size, const void *tag) {                                                                           \
    void *p = mu_malloc(size);                                                                                         \
    return MU_LIKELY(p != NULL) ? p : try_again_nothrow(#name, 0, size, tag, CALLER);                                  \
  }
#define NEW_ALIGNED(name)                                                                                              \
  MU_EXPORT void *name(size_t size, size_t align);                                                                     \
  void *name(size_t size, size_t align) {                                                                              \
    void *p = mu_memalign(align, size);                                                                                \
    return MU_LIKELY(p != NULL) ? p : try_again(align, size, CALLER);                                                  \
  }
#define NEW_ALIGNED_NOTHROW(name)                                                                                      \
  MU_EXPORT void *name(size_t size, size_t align, const void *tag);                                                    \
  void *name(size_t size, size_t align, const void *tag) {                                                             \
    void *p = mu_memalign(align, size);                                                                                \
    return MU_LIKELY(p != NULL) ? p : try_again_nothrow(#name, align, size, tag, CALLER);                              \
  }
/* Sizes, alignments and the nothrow tag are hints that are not needed. */
#define DELETE(name) MU_EXPORT void name(void *p) __attribute__((alias("mu_delete")))

NEW(_Znwm)
NEW(_Znam)
NEW_NOTHROW(_ZnwmRKSt9nothrow_t)
NEW_NOTHROW(_ZnamRKSt9nothrow_t)
NEW_ALIGNED(_ZnwmSt11align_val_t)
NEW_ALIGNED(_ZnamSt11align_val_t)
NEW_ALIGNED_NOTHROW(_ZnwmSt11align_val_tRKSt9nothrow_t)
NEW_ALIGNED_NOTHROW(_ZnamSt11align_val_tRKSt9nothrow_t)

static __attribute__((used)) void mu_delete(void *p) {
  mu_free(p);
}
DELETE(_ZdlPv);
DELETE(_ZdaPv);
DELETE(_ZdlPvRKSt9nothrow_t);
DELETE(_ZdaPvRKSt9nothrow_t);
DELETE(_ZdlPvm);
DELETE(_ZdaPvm);
DELETE(_ZdlPvSt11align_val_t);
DELETE(_ZdaPvSt11align_val_t);
DELETE(_ZdlPvmSt11align_val_t);
DELETE(_ZdaPvmSt11align_val_t);
DELETE(_ZdlPvSt11align_val_tRKSt9nothrow_t);
DELETE(_ZdaPvSt11align_val_tRKSt9nothrow_t);
