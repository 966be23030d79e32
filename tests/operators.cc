// SPDX-License-Identifier: Apache-2.0
// The C++ operators in all their forms, and the containers that live on them.
#include "test.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <memory_resource>
#include <new>
#include <numeric>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

std::size_t const sizes[] = {0, 1, 8, 24, 100, 1000, 4096, 5000, 33000, 200000, 2000000};
std::size_t const alignments[] = {8, 16, 32, 64, 256, 1024, 4096, 65536, 2u << 20};
constexpr std::align_val_t wide_alignment{128};
std::size_t huge() {
  return opaque_size(std::size_t(PTRDIFF_MAX) - 4096);
}

void use(void *p, std::size_t size, std::size_t alignment) {
  CHECK(p != nullptr);
  CHECK(reinterpret_cast<std::uintptr_t>(p) % alignment == 0);
  pattern_fill(p, size, size);
  CHECK_PATTERN(p, size, size);
}

// Several at a time, so that patterns can collide.
template <typename New, typename Delete>
void round_trip(std::size_t size, std::size_t alignment, New make, Delete drop) {
  void *p[8];
  std::size_t const count = size < 100000 ? 8 : 2;
  for (std::size_t i = 0; i < count; i++) {
    p[i] = opaque(make());
    use(p[i], size, alignment);
  }
  for (std::size_t i = 0; i < count; i++) {
    CHECK_PATTERN(p[i], size, size);
    drop(p[i]);
  }
}

void forms() {
  std::size_t const standard = size_t(__STDCPP_DEFAULT_NEW_ALIGNMENT__);
  for (std::size_t n : sizes) {
    std::size_t const a = n >= standard ? standard : 8;
    auto plain = [n] { return ::operator new(n); };
    auto array = [n] { return ::operator new[](n); };
    auto plain_nothrow = [n] { return ::operator new(n, std::nothrow); };
    auto array_nothrow = [n] { return ::operator new[](n, std::nothrow); };
    round_trip(n, a, plain, [](void *p) { ::operator delete(p); });
#ifdef __cpp_sized_deallocation // clang has it with -fsized-deallocation
    round_trip(n, a, plain, [n](void *p) { ::operator delete(p, n); });
#endif
    round_trip(n, a, array, [](void *p) { ::operator delete[](p); });
#ifdef __cpp_sized_deallocation // clang has it with -fsized-deallocation
    round_trip(n, a, array, [n](void *p) { ::operator delete[](p, n); });
#endif
    round_trip(n, a, plain_nothrow, [](void *p) { ::operator delete(p, std::nothrow); });
    round_trip(n, a, array_nothrow, [](void *p) { ::operator delete[](p, std::nothrow); });
    round_trip(n, a, plain_nothrow, [](void *p) { ::operator delete(p); });
    for (std::size_t alignment : alignments) {
      std::align_val_t const v{alignment};
      auto aligned = [n, v] { return ::operator new(n, v); };
      auto aligned_array = [n, v] { return ::operator new[](n, v); };
      auto aligned_nothrow = [n, v] { return ::operator new(n, v, std::nothrow); };
      auto aligned_array_nothrow = [n, v] { return ::operator new[](n, v, std::nothrow); };
      round_trip(n, alignment, aligned, [v](void *p) { ::operator delete(p, v); });
#ifdef __cpp_sized_deallocation // clang has it with -fsized-deallocation
      round_trip(n, alignment, aligned, [n, v](void *p) { ::operator delete(p, n, v); });
#endif
      round_trip(n, alignment, aligned_array, [v](void *p) { ::operator delete[](p, v); });
#ifdef __cpp_sized_deallocation // clang has it with -fsized-deallocation
      round_trip(n, alignment, aligned_array, [n, v](void *p) { ::operator delete[](p, n, v); });
#endif
      round_trip(n, alignment, aligned_nothrow, [v](void *p) { ::operator delete(p, v, std::nothrow); });
      round_trip(n, alignment, aligned_array_nothrow, [v](void *p) { ::operator delete[](p, v, std::nothrow); });
    }
  }
  void *a = ::operator new(opaque_size(0));
  void *b = ::operator new(opaque_size(0));
  CHECK(a != b);
  ::operator delete(a);
  ::operator delete(b);
  ::operator delete(opaque(nullptr));
  ::operator delete[](opaque(nullptr));
#ifdef __cpp_sized_deallocation // clang has it with -fsized-deallocation
  ::operator delete(opaque(nullptr), std::size_t(8));
  ::operator delete[](opaque(nullptr), std::size_t(8));
#endif
  ::operator delete(opaque(nullptr), std::nothrow);
  ::operator delete[](opaque(nullptr), std::nothrow);
  ::operator delete(opaque(nullptr), std::align_val_t(64));
  ::operator delete[](opaque(nullptr), std::align_val_t(64));
#ifdef __cpp_sized_deallocation // clang has it with -fsized-deallocation
  ::operator delete(opaque(nullptr), std::size_t(8), std::align_val_t(64));
  ::operator delete[](opaque(nullptr), std::size_t(8), std::align_val_t(64));
#endif
  ::operator delete(opaque(nullptr), std::align_val_t(64), std::nothrow);
  ::operator delete[](opaque(nullptr), std::align_val_t(64), std::nothrow);
}

template <typename F> bool throws_bad_alloc(F f) {
  try {
    opaque(f());
  } catch (std::bad_alloc const &) {
    return true;
  }
  return false;
}

bool operators_are_ours() {
  Dl_info library, info;
  void *anchor = dlsym(RTLD_DEFAULT, "mesh_uffd_version");
  void *aligned_new = dlsym(RTLD_DEFAULT, "_ZnwmSt11align_val_t");
  return anchor && aligned_new && dladdr(anchor, &library) && dladdr(aligned_new, &info) &&
         library.dli_fbase == info.dli_fbase;
}

void exhaustion() {
  CHECK(throws_bad_alloc([] { return ::operator new(huge()); }));
  CHECK(throws_bad_alloc([] { return ::operator new[](huge()); }));
  CHECK(throws_bad_alloc([] { return ::operator new(opaque_size(SIZE_MAX)); }));
  CHECK(throws_bad_alloc([] { return ::operator new(huge(), std::align_val_t(64)); }));
  CHECK(throws_bad_alloc([] { return ::operator new[](huge(), std::align_val_t(4096)); }));
  // The C++ library's own rounds this size up to zero; an operator of ours does not.
  if (operators_are_ours())
    CHECK(throws_bad_alloc([] { return ::operator new(opaque_size(SIZE_MAX), std::align_val_t(64)); }));
  CHECK(throws_bad_alloc([] { return new long[opaque_size(SIZE_MAX / 4)]; }));
  CHECK(opaque(::operator new(huge(), std::nothrow)) == nullptr);
  CHECK(opaque(::operator new[](huge(), std::nothrow)) == nullptr);
  CHECK(opaque(::operator new(huge(), std::align_val_t(64), std::nothrow)) == nullptr);
  CHECK(opaque(::operator new[](huge(), std::align_val_t(64), std::nothrow)) == nullptr);
  CHECK(opaque(::operator new(opaque_size(SIZE_MAX), std::nothrow)) == nullptr);
  bool thrown = false;
  try {
    std::vector<char> v(huge() / 2);
    opaque(v.data());
  } catch (std::exception const &) {
    thrown = true;
  }
  CHECK(thrown);
}

int handler_calls;

void patient_handler() {
  if (++handler_calls == 3) std::set_new_handler(nullptr);
}

struct out_of_patience : std::bad_alloc {};

void throwing_handler() {
  ++handler_calls;
  throw out_of_patience();
}

template <typename F> void expect_handler(F f, bool nothrow) {
  handler_calls = 0;
  std::set_new_handler(patient_handler);
  bool thrown = false;
  void *p = nullptr;
  try {
    p = opaque(f());
  } catch (std::bad_alloc const &) {
    thrown = true;
  }
  CHECKF(handler_calls == 3, "%d calls", handler_calls);
  CHECK(p == nullptr && thrown == !nothrow);
  CHECK(std::get_new_handler() == nullptr);

  handler_calls = 0;
  std::set_new_handler(throwing_handler);
  bool own = false;
  try {
    p = opaque(f());
  } catch (out_of_patience const &) {
    own = true;
  }
  std::set_new_handler(nullptr);
  CHECKF(handler_calls == 1, "%d calls", handler_calls);
  CHECK(p == nullptr && own == !nothrow);
}

void handlers() {
  expect_handler([] { return ::operator new(huge()); }, false);
  expect_handler([] { return ::operator new[](huge()); }, false);
  expect_handler([] { return ::operator new(huge(), wide_alignment); }, false);
  expect_handler([] { return ::operator new[](huge(), wide_alignment); }, false);
  expect_handler([] { return ::operator new(huge(), std::nothrow); }, true);
  expect_handler([] { return ::operator new[](huge(), std::nothrow); }, true);
  expect_handler([] { return ::operator new(huge(), wide_alignment, std::nothrow); }, true);
  expect_handler([] { return ::operator new[](huge(), wide_alignment, std::nothrow); }, true);
}

struct alignas(128) wide {
  unsigned char bytes[200];
};

struct counted {
  static long live;
  std::string text;
  explicit counted(int i) : text(std::size_t(i % 70), char('a' + i % 26)) { ++live; }
  counted(counted const &other) : text(other.text) { ++live; }
  counted &operator=(counted const &) = default;
  virtual ~counted() { --live; }
};
long counted::live = 0;

struct derived : counted {
  std::vector<int> more;
  explicit derived(int i) : counted(i), more(std::size_t(i % 50), i) {}
};

void containers(struct rng rng) {
  for (int round = 0; round < (test_is_long() ? 200 : 4); round++) {
    std::map<std::string, std::vector<int>> tree;
    std::unordered_map<std::string, long> table;
    std::map<std::string, long> reference;
    std::list<std::unique_ptr<counted>> list;
    std::deque<std::shared_ptr<counted>> deque;
    for (int i = 0; i < 20000; i++) {
      std::string key = "key " + std::to_string(rng_below(&rng, 5000));
      if (rng_below(&rng, 20) == 0) key.append(300, 'x');
      table[key] += i;
      reference[key] += i;
      tree[key].push_back(i);
      if (rng_below(&rng, 4) == 0) {
        table.erase(key);
        reference.erase(key);
        tree.erase(key);
      }
      if (i % 3)
        list.push_back(std::make_unique<derived>(i));
      else
        list.push_front(std::make_unique<counted>(i));
      deque.push_back(std::make_shared<derived>(i));
      if (deque.size() > 500) deque.pop_front();
      if (list.size() > 700) list.erase(std::next(list.begin(), long(rng_below(&rng, 20))));
    }
    CHECK(table.size() == reference.size() && tree.size() == reference.size());
    for (auto const &[key, value] : reference) {
      CHECK(table.at(key) == value);
      CHECK(std::accumulate(tree.at(key).begin(), tree.at(key).end(), 0L) == value);
    }
    for (auto const &item : deque)
      CHECK(item->text.find_first_not_of(item->text[0]) == std::string::npos || item->text.empty());
    CHECK(counted::live == long(list.size() + deque.size()));
    list.clear();
    deque.clear();
    CHECK(counted::live == 0);
  }
  std::vector<wide> many(1000);
  CHECK(reinterpret_cast<std::uintptr_t>(many.data()) % 128 == 0);
  std::unique_ptr<wide> one(new wide);
  CHECK(reinterpret_cast<std::uintptr_t>(opaque(one.get())) % 128 == 0);
  std::unique_ptr<wide[]> some(new wide[5]);
  CHECK(reinterpret_cast<std::uintptr_t>(opaque(some.get())) % 128 == 0);

  std::pmr::unsynchronized_pool_resource pool;
  std::pmr::map<int, std::pmr::string> pooled(&pool);
  for (int i = 0; i < 5000; i++) pooled[i] = std::pmr::string(std::size_t(i % 200), 'p', &pool);
  for (int i = 0; i < 5000; i++) CHECK(pooled[i].size() == std::size_t(i % 200));

  std::ostringstream stream;
  for (int i = 0; i < 10000; i++) stream << i << ' ';
  CHECK(stream.str().size() == 48890);

  std::vector<std::thread> threads;
  std::vector<std::multiset<std::string>> results(4);
  for (std::size_t t = 0; t < 4; t++)
    threads.emplace_back([t, &results] {
      for (int i = 0; i < 20000; i++)
        results[t].insert(std::to_string(i % 1000 * int(t + 1)) + std::string(std::size_t(i % 40), 't'));
    });
  for (auto &thread : threads) thread.join();
  for (auto const &result : results) CHECK(result.size() == 20000 && std::is_sorted(result.begin(), result.end()));
}

// Exceptions are allocated by the C++ library with malloc, and thrown across threads.
void exceptions() {
  std::exception_ptr carried;
  std::thread([&carried] {
    try {
      throw std::runtime_error(std::string(1000, 'e'));
    } catch (...) {
      carried = std::current_exception();
    }
  }).join();
  bool caught = false;
  try {
    std::rethrow_exception(carried);
  } catch (std::runtime_error const &error) {
    caught = std::string(error.what()) == std::string(1000, 'e');
  }
  CHECK(caught);
}

// Objects whose life is that of the program.
struct global {
  std::map<int, std::string> content;
  global() {
    for (int i = 0; i < 1000; i++) content[i] = std::string(100, char('a' + i % 26));
  }
  ~global() {
    for (int i = 0; i < 1000; i++) CHECK(content[i] == std::string(100, char('a' + i % 26)));
    content.clear();
    content[1] = std::string(5000, 'z');
  }
} early;

} // namespace

int main() {
  std::uint64_t seed = test_begin();
  test_watchdog(test_is_long() ? 900 : 120);
  forms();
  printf("ok forms\n");
  printf("operators: %s\n", operators_are_ours() ? "the library's" : "the C++ library's");
  if (dlsym(RTLD_DEFAULT, "mi_version")) {
    printf("skipped part: exhaustion, handlers: mimalloc for C ends the process\n");
  } else {
    exhaustion();
    printf("ok exhaustion\n");
    handlers();
    printf("ok handlers\n");
  }
  containers(rng_from(seed, 0));
  printf("ok containers\n");
  exceptions();
  printf("ok exceptions\npassed\n");
  return 0;
}
