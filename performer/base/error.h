// SPDX-License-Identifier: Apache-2.0
// Error types. Libraries throw; only the program turns an error into an exit code.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

#include "performer/base/printable.h"

namespace performer {

// Base of all errors of this project. Exit code 1: the work failed (full disk, out of memory, diverged loss).
// A message is one line, made printable: names and paths in it may come from anywhere.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(printable(message)) {}
  virtual int exit_code() const { return 1; }
};

// Exit code 2: the request itself is wrong (unknown option or key, impossible sizes).
class UsageError : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 2; }
};

// Exit code 3: an input is bad (missing, truncated, malformed, of another model).
class InputError : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 3; }
};

// Exit code 130: stopped by a signal after a checkpoint was written.
class Interrupted : public Error {
 public:
  using Error::Error;
  int exit_code() const override { return 130; }
};

// Throws E with a formatted message unless `condition` holds.
template <class E = Error, class... Args>
void check(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) throw E(fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace performer
