// SPDX-License-Identifier: Apache-2.0
// Gradients summed over ranks in buckets, while the backward pass still runs.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "performer/distributed/communicator.h"

namespace performer::distributed {

// Of one optimizer step: backward passes that only accumulate, then begin(), the last backward pass,
// finish(). Small gradients travel together, in float32 (float64 where the parameters are); a float32
// gradient that fills a bucket is summed where it lies. A parameter without a gradient on some ranks counts
// as zero there, and stays without one where no rank has any.
class GradientSum {
 public:
  // `parameters`: the same on all ranks, in the order in which the model uses them: their gradients come in
  // reverse. `bucket_bytes`: a bucket is sent once it holds that much.
  GradientSum(Communicator& ranks, std::vector<at::Tensor> parameters,
              int64_t bucket_bytes = int64_t{1} << 22);
  ~GradientSum();
  GradientSum(const GradientSum&) = delete;
  GradientSum& operator=(const GradientSum&) = delete;

  // From now on a bucket is sent as soon as the backward pass has given all its gradients. Each parameter
  // must get its gradient at once: for a task that makes several backward passes of a batch, leave begin()
  // out.
  void begin();
  // Sends what was not sent yet and waits: the gradients of all ranks are now the same sums.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace performer::distributed
