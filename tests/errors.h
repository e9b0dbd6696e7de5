// SPDX-License-Identifier: Apache-2.0
// What an action that must fail says.
#pragma once

#include <gtest/gtest.h>

#include <string>

namespace performer::test {

// The message of the E that `action` throws; without one the test fails and the message is "".
template <class E, class Action>
std::string error_of(const Action& action) {
  try {
    action();
  } catch (const E& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

}  // namespace performer::test
