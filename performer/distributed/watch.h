// SPDX-License-Identifier: Apache-2.0
// Who of the ranks is still there: a thread that gives a sign of life in the store they share, and reads
// those of the others.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <string>

namespace c10d {
class Store;
}

namespace performer::distributed {

class Watch {
 public:
  // `store` is used by the watch alone. A rank without a sign of life for `silence` seconds counts as lost,
  // as does rank 0 (or torchrun) when the store itself does not answer.
  Watch(c10::intrusive_ptr<c10d::Store> store, int rank, int size, double silence);
  // Tells the others that this rank is done, unless it failed. Where the store lies in this process
  // (`keeps_store`), waits a few seconds for the others to be done as well.
  ~Watch();
  Watch(const Watch&) = delete;

  void keeps_store(bool value);
  // A sentence that says who was lost, or failed and why; "" while all ranks are well.
  std::string trouble() const;
  // After an exchange failed with `error`: waits until it is known which rank was lost, `silence` seconds at
  // most, and says it.
  std::string explain(const std::string& error);
  void fail(const std::string& reason) noexcept;
  // Whether rank 0 fails because of `reason`, or this rank because of that one's reason. Waits so many
  // seconds for it. Asked before fail(), with which the watch ends.
  bool first_fails_with(const std::string& reason, double seconds) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace performer::distributed
