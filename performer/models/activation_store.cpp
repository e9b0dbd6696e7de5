// SPDX-License-Identifier: Apache-2.0
#include "performer/models/activation_store.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "performer/base/error.h"

namespace performer {
namespace {

constexpr int64_t kElement = sizeof(float);

// Moves `size` bytes by pread() or pwrite(), which may do less at a time. False with errno when that fails.
template <class Call, class Pointer>
bool transfer(Call call, int descriptor, Pointer data, int64_t size, int64_t offset) {
  while (size > 0) {
    const ssize_t done = call(descriptor, data, static_cast<size_t>(size), offset);
    if (done < 0 && errno == EINTR) continue;
    if (done == 0) errno = EIO;  // a file that somebody has cut
    if (done <= 0) return false;
    data += done;
    size -= done;
    offset += done;
  }
  return true;
}

int temporary_file(const std::string& folder) {
  std::string path = folder + "/performer-activations-XXXXXX";
  const int descriptor = ::mkostemp(path.data(), O_CLOEXEC);
  check(descriptor >= 0,
        "cannot make a temporary file in {}: {}; set TMPDIR to a folder that can be written to", folder,
        std::strerror(errno));
  ::unlink(path.c_str());
  return descriptor;
}

}  // namespace

ActivationStore::ActivationStore(int64_t length, int64_t width, const std::string& folder,
                                 int64_t most_in_memory)
    : width_(width), folder_(folder) {
  if (length * width * kElement <= most_in_memory) {
    rows_ = at::empty({length, width}, at::kFloat);
  } else {
    descriptor_ = temporary_file(folder);
  }
}

ActivationStore::~ActivationStore() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

at::Tensor ActivationStore::read(int64_t first, int64_t count) const {
  if (rows_.defined()) return rows_.narrow(0, first, count).clone();
  at::Tensor rows = at::empty({count, width_}, at::kFloat);
  const bool done = transfer(::pread, descriptor_, static_cast<char*>(rows.data_ptr()),
                             rows.numel() * kElement, first * width_ * kElement);
  check(done, "cannot read the temporary file of activations in {}: {}", folder_, std::strerror(errno));
  return rows;
}

void ActivationStore::write(int64_t first, const at::Tensor& given) {
  const at::Tensor rows = given.to(at::kFloat).contiguous();
  if (rows_.defined()) {
    rows_.narrow(0, first, rows.size(0)).copy_(rows);
    return;
  }
  const bool done = transfer(::pwrite, descriptor_, static_cast<const char*>(rows.data_ptr()),
                             rows.numel() * kElement, first * width_ * kElement);
  check(done,
        "cannot write activations to a temporary file in {}: {}; set TMPDIR to a folder with more space",
        folder_, std::strerror(errno));
}

}  // namespace performer
