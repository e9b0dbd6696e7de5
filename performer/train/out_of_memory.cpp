// SPDX-License-Identifier: Apache-2.0
#include "performer/train/out_of_memory.h"

#include <unistd.h>

#include <string_view>

namespace performer::train {

double physical_memory() {
  return static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

bool is_out_of_memory(const c10::Error& error) {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  // The CPU allocator throws a plain c10::Error; its text is all there is to tell it by.
  const std::string_view text = error.what_without_backtrace();
  return text.find("can't allocate memory") != text.npos || text.find("not enough memory") != text.npos;
}

}  // namespace performer::train
