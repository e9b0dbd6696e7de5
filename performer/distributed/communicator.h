// SPDX-License-Identifier: Apache-2.0
// How the processes (ranks) of a training run exchange tensors. One rank is the normal case of the same code:
// its communicator does nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "performer/distributed/environment.h"

namespace performer::distributed {

// An exchange that was begun. wait() throws what Communicator says; a tensor in it must not be touched
// before.
class Pending {
 public:
  virtual ~Pending() = default;
  virtual void wait() = 0;
};

// What a rank handed to exchanges so far: their number, and the bytes of its own tensors in them. A message
// counts where it is sent.
struct Traffic {
  int64_t exchanges = 0, bytes = 0;
};

// All ranks of a communicator call the same functions in the same order with tensors of the same shape and
// type; messages between two ranks concern these alone. Tensors are contiguous and on the CPU. Errors: Error
// saying which rank was lost, or which failed and why; after one, nothing more can be exchanged.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Sums over all ranks, in place; float32, float64 or int64.
  virtual std::unique_ptr<Pending> begin_sum(const at::Tensor& tensor) = 0;
  void sum(const at::Tensor& tensor) { begin_sum(tensor)->wait(); }
  // The largest of all ranks for each element, in place.
  virtual void maximum(const at::Tensor& tensor) = 0;
  // What rank `from` has takes the place of what the others have.
  virtual void broadcast(const at::Tensor& tensor, int from) = 0;
  // What each rank has: [size, ...].
  virtual at::Tensor gather(const at::Tensor& own) = 0;
  // parts[r] of all ranks, summed, goes to rank r: [size, ...] -> [...].
  virtual at::Tensor sum_of_own_part(const at::Tensor& parts) = 0;

  // A message to one other rank, and its counterpart there: messages from one rank to another arrive in the
  // order in which they were sent. At least one number, of the same shape and type on both sides.
  virtual std::unique_ptr<Pending> begin_send(const at::Tensor& tensor, int to) = 0;
  virtual std::unique_ptr<Pending> begin_receive(const at::Tensor& tensor, int from) = 0;
  void receive(const at::Tensor& tensor, int from) { begin_receive(tensor, from)->wait(); }

  // The communicator of the ranks first, first + stride, ... (`count` of them), this one included. All ranks
  // call it together, each for its own group, with a name that no other division of the ranks has. It must
  // not outlive this one.
  virtual std::unique_ptr<Communicator> group(const std::string& name, int first, int stride, int count) = 0;

  // Tells the other ranks that this one ends because of an error, so that they say so, too. Throws nothing.
  virtual void fail(const std::string& reason) noexcept = 0;
  // Before fail(): whether rank 0, another than this one, ends with the same reason, and so says it. Waits so
  // many seconds for it.
  virtual bool first_fails_with(const std::string& reason, double seconds) = 0;

  virtual Traffic traffic() const = 0;
};

// One rank without others.
std::unique_ptr<Communicator> single_rank();

struct ConnectOptions {
  double meeting_seconds = 300;  // that all ranks may take to come
  double silence_seconds = 30;   // after which a rank that gives no sign of life counts as lost
};

// Meets the other ranks over c10d (TCPStore and Gloo of LibTorch); single_rank() for an environment of one.
// Connections go through the network interface in GLOO_SOCKET_IFNAME, or the one that reaches the meeting
// place. Throws Error naming the ranks that did not come, and where this LibTorch was built without
// distributed support.
std::unique_ptr<Communicator> connect(const Environment& environment, const ConnectOptions& options = {});

}  // namespace performer::distributed
