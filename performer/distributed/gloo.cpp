// SPDX-License-Identifier: Apache-2.0
// The communicator over c10d. The only file that sees c10d's process group; it is compiled with
// gloo_stand_in/.
#include <ATen/ATen.h>

#include "performer/base/error.h"
#include "performer/distributed/communicator.h"

#if defined(USE_C10D_GLOO) && __has_include(<torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>)

#include <arpa/inet.h>
#include <c10/util/Logging.h>
#include <fmt/ranges.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "performer/distributed/watch.h"

namespace performer::distributed {
namespace {

using Milliseconds = std::chrono::milliseconds;
using StorePointer = c10::intrusive_ptr<c10d::Store>;
using Device = std::shared_ptr<::gloo::transport::Device>;

constexpr Milliseconds kLook = Milliseconds(100);  // how often a waiting rank looks who was lost
// Of Gloo itself. The watch finds out first; a rank may wait for long, for example while rank 0 writes a
// checkpoint.
constexpr Milliseconds kLongest = std::chrono::hours(24);

Milliseconds milliseconds(double seconds) {
  return Milliseconds(static_cast<int64_t>(seconds * 1000));
}

// Its first line, without a trace of calls.
std::string reason_of(const std::exception_ptr& pointer) {
  try {
    std::rethrow_exception(pointer);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
  } catch (...) {
    return "unknown error";
  }
}

// How an exchange went, once another thread knows.
class Outcome {
 public:
  void reach(const std::exception_ptr& error) {
    const std::lock_guard lock(mutex_);
    reached_ = true;
    error_ = error;
    changed_.notify_all();
  }
  void wait(Watch& watch) {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kLook, [&] { return reached_; })) {
      if (const std::string trouble = watch.trouble(); !trouble.empty()) throw Error(trouble);
    }
    if (error_) throw Error(watch.explain(reason_of(error_)));
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  std::exception_ptr error_;
};

class PendingWork final : public Pending {
 public:
  PendingWork(const c10::intrusive_ptr<c10d::Work>& work, std::shared_ptr<Watch> watch)
      : watch_(std::move(watch)), outcome_(std::make_shared<Outcome>()) {
    work->getFuture()->addCallback([outcome = outcome_](c10::ivalue::Future& future) {
      outcome->reach(future.hasError() ? future.exception_ptr() : nullptr);
    });
  }
  void wait() override { outcome_->wait(*watch_); }

 private:
  std::shared_ptr<Watch> watch_;
  std::shared_ptr<Outcome> outcome_;
};

// Messages have no future, and to give up waiting for one breaks its connection: a thread waits for it.
class PendingMessage final : public Pending {
 public:
  PendingMessage(c10::intrusive_ptr<c10d::Work> work, std::shared_ptr<Watch> watch)
      : work_(std::move(work)), watch_(std::move(watch)), thread_([this] {
          try {
            work_->wait();
            outcome_.reach(nullptr);
          } catch (...) {
            outcome_.reach(std::current_exception());
          }
        }) {}
  ~PendingMessage() override {
    if (!done_) work_->abort();
    thread_.join();
  }
  void wait() override {
    outcome_.wait(*watch_);
    done_ = true;
  }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  std::shared_ptr<Watch> watch_;
  Outcome outcome_;
  bool done_ = false;
  std::thread thread_;  // last: it uses the others
};

// What the groups of one meeting share.
struct Meeting {
  StorePointer store;
  Device device;
  std::shared_ptr<Watch> watch;
};

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(Meeting meeting, const std::string& name, int rank, int size)
      : meeting_(std::move(meeting)), rank_(rank), size_(size) {
    auto options = c10d::ProcessGroupGloo::Options::create(kLongest);
    options->devices.push_back(meeting_.device);
    const auto store = c10::make_intrusive<c10d::PrefixStore>("group/" + name, meeting_.store);
    group_ = begun([&] { return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options); });
    // No rank goes on, and perhaps ends with an error of its own, while another is still connecting: that one
    // would only see a closed connection.
    std::vector<at::Tensor> nothing{at::zeros({1})};
    try {
      pending([&] { return group_->allreduce(nothing); })->wait();
    } catch (const Error&) {
      leave();
      throw;
    }
  }

  ~GlooCommunicator() override {
    if (broken_ || !meeting_.watch->trouble().empty()) leave();
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  std::unique_ptr<Pending> begin_sum(const at::Tensor& tensor) override {
    std::vector<at::Tensor> tensors{tensor};
    count(tensor);
    return pending([&] { return group_->allreduce(tensors); });
  }
  void maximum(const at::Tensor& tensor) override {
    std::vector<at::Tensor> tensors{tensor};
    c10d::AllreduceOptions options;
    options.reduceOp = c10d::ReduceOp::MAX;
    finish([&] { return group_->allreduce(tensors, options); }, tensor);
  }
  void broadcast(const at::Tensor& tensor, int from) override {
    std::vector<at::Tensor> tensors{tensor};
    c10d::BroadcastOptions options;
    options.rootRank = from;
    finish([&] { return group_->broadcast(tensors, options); }, tensor);
  }
  at::Tensor gather(const at::Tensor& own) override {
    std::vector<std::vector<at::Tensor>> all(1);
    std::vector<at::Tensor> mine{own};
    for (int i = 0; i < size_; ++i) all[0].push_back(at::empty_like(own));
    finish([&] { return group_->allgather(all, mine); }, own);
    return at::stack(all[0]);
  }
  at::Tensor sum_of_own_part(const at::Tensor& parts) override {
    // Gloo's own operation of this kind is an all-reduce, too.
    const at::Tensor all = parts.clone();
    sum(all);
    return all[rank_];
  }

  // A number of its own for each message between two ranks: none takes the place of another.
  std::unique_ptr<Pending> begin_send(const at::Tensor& tensor, int to) override {
    std::vector<at::Tensor> tensors{tensor};
    count(tensor);
    return message([&] { return group_->send(tensors, to, sent_to_[to]++); });
  }
  std::unique_ptr<Pending> begin_receive(const at::Tensor& tensor, int from) override {
    std::vector<at::Tensor> tensors{tensor};
    return message([&] { return group_->recv(tensors, from, received_from_[from]++); });
  }

  std::unique_ptr<Communicator> group(const std::string& name, int first, int stride, int count) override {
    if (count == 1) return single_rank();
    return std::make_unique<GlooCommunicator>(meeting_, fmt::format("{}/{}", name, first),
                                              (rank_ - first) / stride, count);
  }

  void fail(const std::string& reason) noexcept override {
    broken_ = true;
    meeting_.watch->fail(reason);
  }
  bool first_fails_with(const std::string& reason, double seconds) override {
    return meeting_.watch->first_fails_with(reason, seconds);
  }
  Traffic traffic() const override { return traffic_; }

 private:
  // After a loss the group's threads wait for ranks that never come: it is left to the end of the process.
  void leave() { (void)group_.release(); }
  void count(const at::Tensor& tensor) {
    ++traffic_.exchanges;
    traffic_.bytes += static_cast<int64_t>(tensor.nbytes());
  }
  // What `begin` returns: a group, or an exchange, where Gloo throws at once if it knows of a lost
  // connection.
  template <class Begin>
  auto begun(const Begin& begin) -> decltype(begin()) {
    try {
      return begin();
    } catch (const std::exception&) {
      throw Error(meeting_.watch->explain(reason_of(std::current_exception())));
    }
  }
  template <class Begin>
  std::unique_ptr<Pending> pending(const Begin& begin) {
    return std::make_unique<PendingWork>(begun(begin), meeting_.watch);
  }
  template <class Begin>
  std::unique_ptr<Pending> message(const Begin& begin) {
    return std::make_unique<PendingMessage>(begun(begin), meeting_.watch);
  }
  template <class Begin>
  void finish(const Begin& begin, const at::Tensor& counted) {
    count(counted);
    pending(begin)->wait();
  }

  Meeting meeting_;
  int rank_, size_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_;
  std::map<int, int> sent_to_, received_from_;  // messages so far
  Traffic traffic_;
  bool broken_ = false;
};

// The address of this machine on the way to `host`: that of a datagram socket which sends nothing.
std::string own_address(const std::string& host, int port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  check(error == 0, "MASTER_ADDR is {}, which has no address: {}", host, ::gai_strerror(error));
  std::string address;
  for (const addrinfo* one = found; one != nullptr && address.empty(); one = one->ai_next) {
    const int socket = ::socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, 0);
    if (socket < 0) continue;
    sockaddr_storage name{};
    socklen_t size = sizeof(name);
    char text[NI_MAXHOST] = "";
    if (::connect(socket, one->ai_addr, one->ai_addrlen) == 0 &&
        ::getsockname(socket, reinterpret_cast<sockaddr*>(&name), &size) == 0 &&
        ::getnameinfo(reinterpret_cast<const sockaddr*>(&name), size, text, sizeof(text), nullptr, 0,
                      NI_NUMERICHOST) == 0) {
      address = text;
    }
    ::close(socket);
  }
  ::freeaddrinfo(found);
  check(!address.empty(), "no network reaches MASTER_ADDR, which is {}", host);
  return address;
}

Device make_device(const Environment& environment) {
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  try {
    if (interface != nullptr && *interface != '\0')
      return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
  } catch (const std::exception&) {
    throw Error(fmt::format(
        "the environment variable GLOO_SOCKET_IFNAME names {}, which is no interface that can be used: {}",
        interface, reason_of(std::current_exception())));
  }
  return c10d::ProcessGroupGloo::createDeviceForHostname(own_address(environment.address, environment.port));
}

StorePointer open_store(const Environment& environment, const ConnectOptions& options, bool server) {
  c10d::TCPStoreOptions store;
  store.port = static_cast<uint16_t>(environment.port);
  store.isServer = server;
  store.waitWorkers = false;
  store.timeout = milliseconds(options.meeting_seconds);
  if (server && environment.listener >= 0) store.masterListenFd = environment.listener;
  return c10::make_intrusive<c10d::TCPStore>(environment.address, store);
}

// Waits for all ranks, and names those that do not come.
void meet(c10d::Store& store, const Environment& environment, double seconds) {
  const auto key = [](int rank) { return fmt::format("here/{}", rank); };
  store.set(key(environment.rank), std::string("1"));
  std::vector<std::string> keys;
  for (int rank = 0; rank < environment.size; ++rank) keys.push_back(key(rank));
  for (const auto begun = std::chrono::steady_clock::now(); !store.check(keys);) {
    if (std::chrono::steady_clock::now() - begun > milliseconds(seconds)) break;
    std::this_thread::sleep_for(kLook);
  }
  std::vector<int> missing;
  for (int rank = 0; rank < environment.size; ++rank) {
    if (!store.check({key(rank)})) missing.push_back(rank);
  }
  if (missing.empty()) return;
  throw Error(fmt::format("of {} ranks these have not come to {}:{} within {:.0f} s: {}", environment.size,
                          environment.address, environment.port, seconds, fmt::join(missing, ", ")));
}

}  // namespace

std::unique_ptr<Communicator> connect(const Environment& environment, const ConnectOptions& options) {
  if (environment.size == 1) return single_rank();
  // c10d warns of each lost connection with a trace of calls; what it means is said by the watch.
  if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) ::FLAGS_caffe2_log_level = 2;
  const bool serves = environment.rank == 0 && !environment.agent_store;
  Meeting meeting;
  StorePointer signs;
  try {
    // A job that was started again finds the keys of its earlier attempts in torchrun's store.
    const auto prefixed = [&](const StorePointer& store) {
      return c10::make_intrusive<c10d::PrefixStore>(fmt::format("performer/{}", environment.attempt), store);
    };
    meeting.store = prefixed(open_store(environment, options, serves));
    signs = prefixed(open_store(environment, options, false));
  } catch (const std::exception&) {
    throw Error(fmt::format(
        "rank {} of {} cannot reach the meeting place {}:{} (MASTER_ADDR, MASTER_PORT): {}", environment.rank,
        environment.size, environment.address, environment.port, reason_of(std::current_exception())));
  }
  meet(*meeting.store, environment, options.meeting_seconds);
  meeting.watch = std::make_shared<Watch>(signs, environment.rank, environment.size, options.silence_seconds);
  meeting.watch->keeps_store(serves);
  meeting.device = make_device(environment);
  return std::make_unique<GlooCommunicator>(meeting, "all", environment.rank, environment.size);
}

}  // namespace performer::distributed

#else

namespace performer::distributed {

std::unique_ptr<Communicator> connect(const Environment& environment, const ConnectOptions&) {
  check(environment.size == 1,
        "{} ranks were asked for, but this program was built with a LibTorch without c10d and Gloo: build it "
        "with that of `pip "
        "install torch`, or start one rank",
        environment.size);
  return single_rank();
}

}  // namespace performer::distributed

#endif
