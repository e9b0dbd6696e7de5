// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/machine.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <random>

#include "performer/base/error.h"
#include "performer/base/files.h"

namespace performer::distributed {
namespace {

std::string link_of(const char* path) {
  std::array<char, 128> text{};
  const ssize_t size = ::readlink(path, text.data(), text.size());
  return size > 0 ? std::string(text.data(), static_cast<size_t>(size)) : "";
}

std::string path_of(int64_t process, int64_t descriptor) {
  return fmt::format("/proc/{}/fd/{}", process, descriptor);
}

at::Tensor numbers(const std::vector<int64_t>& values) {
  return at::tensor(values, at::kLong);
}

// A descriptor that is closed at the end.
class Held {
 public:
  explicit Held(int descriptor) : descriptor_(descriptor) {}
  ~Held() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  int get() const { return descriptor_; }

 private:
  int descriptor_;
};

// A file of one number in memory, without a name as those that are shared; -1 where the system makes none.
int file_of(int64_t number) {
  const int descriptor = ::memfd_create("performer-rank", MFD_CLOEXEC);
  if (descriptor >= 0 && ::pwrite(descriptor, &number, sizeof(number), 0) == ssize_t{sizeof(number)})
    return descriptor;
  if (descriptor >= 0) ::close(descriptor);
  return -1;
}

bool holds(int64_t process, int64_t descriptor, int64_t number) {
  if (descriptor < 0) return false;
  const Held file(::open(path_of(process, descriptor).c_str(), O_RDONLY | O_CLOEXEC));
  int64_t found = 0;
  return file.get() >= 0 && ::pread(file.get(), &found, sizeof(found), 0) == ssize_t{sizeof(found)} &&
         found == number;
}

int64_t random_number() {
  std::random_device device;
  return static_cast<int64_t>((uint64_t{device()} << 32) | device());
}

}  // namespace

Place own_place() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  const std::string process = link_of("/proc/self"), processes = link_of("/proc/self/ns/pid"),
                    users = link_of("/proc/self/ns/user");
  Place place;
  std::from_chars(process.data(), process.data() + process.size(), place.process);
  if (place.process > 0 && !boot.empty() && !processes.empty()) {
    place.machine = stable_hash(fmt::format("{} {} {} {}", boot, processes, users, ::geteuid()));
  }
  return place;
}

Machine::Machine(Communicator& ranks, const Place& place)
    : ranks_(ranks), place_(place), first_(ranks.rank()) {
  if (ranks_.size() == 1) return;
  const int64_t secret = random_number();
  const Held own(file_of(secret));
  const at::Tensor all =
      ranks_.gather(numbers({static_cast<int64_t>(place.machine), place.process, own.get(), secret}));
  const auto of = all.accessor<int64_t, 2>();
  for (int other = 0; other < ranks_.rank() && place.machine != 0; ++other) {
    if (of[other][0] != static_cast<int64_t>(place.machine)) continue;
    if (holds(of[other][1], of[other][2], of[other][3])) first_ = other;
    break;
  }
  ranks_.sum(at::zeros({1}));  // all have tried: the files may go
}

std::optional<int> Machine::share(int own) {
  if (ranks_.size() == 1) return std::nullopt;
  struct stat status {};
  const bool gives = is_first() && own >= 0;
  check(!gives || ::fstat(own, &status) == 0, "the file of rank {} cannot be looked at: {}", ranks_.rank(),
        std::strerror(errno));
  const at::Tensor all =
      ranks_.gather(numbers({place_.process, gives ? own : -1, static_cast<int64_t>(status.st_dev),
                             static_cast<int64_t>(status.st_ino)}));
  std::string trouble;
  const std::optional<int> found = is_first() ? std::nullopt : open_of_first(all, trouble);
  try {
    ranks_.sum(at::zeros({1}));  // all have opened it; where the first rank was lost, this says so
    check(trouble.empty(), "{}", trouble);
  } catch (...) {
    if (found) ::close(*found);
    throw;
  }
  return found;
}

std::optional<int> Machine::open_of_first(const at::Tensor& all, std::string& trouble) const {
  const auto of = all.accessor<int64_t, 2>()[first_];
  if (of[1] < 0) return std::nullopt;
  const std::string path = path_of(of[0], of[1]);
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    trouble = fmt::format("rank {} cannot open {}, a file of rank {}: {}", ranks_.rank(), path, first_,
                          std::strerror(errno));
    return std::nullopt;
  }
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || static_cast<int64_t>(status.st_dev) != of[2] ||
      static_cast<int64_t>(status.st_ino) != of[3]) {
    ::close(descriptor);
    trouble =
        fmt::format("rank {} found another file than that of rank {} at {}", ranks_.rank(), first_, path);
    return std::nullopt;
  }
  return descriptor;
}

}  // namespace performer::distributed
