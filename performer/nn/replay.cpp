// SPDX-License-Identifier: Apache-2.0
#include "performer/nn/replay.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

#include <mutex>

namespace performer::nn {
namespace {

at::Tensor generator_state(at::Generator& generator) {
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

// Starts the generator of a device at a state and puts it back.
class GeneratorScope {
 public:
  GeneratorScope(at::Device device, const at::Tensor& state)
      : generator_(at::globalContext().defaultGenerator(device)), saved_(generator_state(generator_)) {
    set(state);
  }
  ~GeneratorScope() { set(saved_); }
  GeneratorScope(const GeneratorScope&) = delete;
  GeneratorScope& operator=(const GeneratorScope&) = delete;

 private:
  void set(const at::Tensor& state) {
    const std::lock_guard lock(generator_.mutex());
    generator_.set_state(state);
  }
  at::Generator generator_;
  at::Tensor saved_;
};

// Sets autocast for a scope, its cache off.
class AutocastScope {
 public:
  AutocastScope(at::DeviceType device, bool enabled, at::ScalarType type)
      : device_(device),
        enabled_(at::autocast::is_autocast_enabled(device)),
        cache_(at::autocast::is_autocast_cache_enabled()),
        type_(at::autocast::get_autocast_dtype(device)) {
    set(enabled, false, type);
  }
  ~AutocastScope() { set(enabled_, cache_, type_); }
  AutocastScope(const AutocastScope&) = delete;
  AutocastScope& operator=(const AutocastScope&) = delete;

 private:
  void set(bool enabled, bool cache, at::ScalarType type) {
    at::autocast::set_autocast_enabled(device_, enabled);
    at::autocast::set_autocast_cache_enabled(cache);
    at::autocast::set_autocast_dtype(device_, type);
  }
  at::DeviceType device_;
  bool enabled_, cache_;
  at::ScalarType type_;
};

}  // namespace

Replay::Replay(at::Device device)
    : device_(device),
      autocast_(at::autocast::is_autocast_enabled(device.type())),
      autocast_type_(at::autocast::get_autocast_dtype(device.type())) {
  at::Generator generator = at::globalContext().defaultGenerator(device);
  generator_ = generator_state(generator);
}

at::Tensor Replay::first(const std::function<at::Tensor()>& body) const {
  const AutocastScope autocast(device_.type(), autocast_, autocast_type_);
  return body();
}

at::Tensor Replay::again(const std::function<at::Tensor()>& body) const {
  const GeneratorScope generator(device_, generator_);
  return first(body);
}

}  // namespace performer::nn
