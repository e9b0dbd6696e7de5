// SPDX-License-Identifier: Apache-2.0
#include "performer/models/convert/source_weights.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "performer/base/error.h"

namespace performer::convert {
namespace {

constexpr size_t kMostNamed = 12;      // in one message
constexpr size_t kMostMissing = 1000;  // before it is said
constexpr double kMostNumbers = 1e8;   // of a tensor that is missing, before it is said

std::string listed(const std::vector<std::string>& names) {
  const size_t count = std::min(names.size(), kMostNamed);
  const std::vector<std::string> first(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(count));
  return fmt::format("{}{}", fmt::join(first, ", "),
                     names.size() > count ? fmt::format(" and {} more", names.size() - count) : "");
}

}  // namespace

int64_t SourceWeights::size(const std::string& name, int64_t dimension) const {
  const auto found = tensors_.find(name);
  check<InputError>(found != tensors_.end(), "{}: tensor '{}' is missing", source_, name);
  check<InputError>(found->second.dim() > dimension, "{}: tensor '{}' has {} dimensions, expected {} or more",
                    source_, name, found->second.dim(), dimension + 1);
  return found->second.size(dimension);
}

at::Tensor SourceWeights::take(const std::string& name, const std::vector<int64_t>& shape) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    missing_.push_back(fmt::format("{} [{}]", name, fmt::join(shape, ", ")));
    // A configuration may ask for anything: what stands in for a tensor takes no memory.
    double numbers = 1;
    for (const int64_t extent : shape) numbers *= static_cast<double>(extent);
    if (missing_.size() > kMostMissing || !(numbers >= 0 && numbers < kMostNumbers)) finish();
    return at::zeros({}).expand(shape);
  }
  check<InputError>(found->second.sizes() == at::IntArrayRef(shape),
                    "{}: tensor '{}' has shape [{}], expected [{}]", source_, name,
                    fmt::join(found->second.sizes(), ", "), fmt::join(shape, ", "));
  check<InputError>(found->second.is_floating_point(), "{}: tensor '{}' is of type {}, expected real numbers",
                    source_, name, c10::toString(found->second.scalar_type()));
  const at::Tensor taken = found->second.to(at::kFloat);
  tensors_.erase(found);
  return taken;
}

at::Tensor SourceWeights::take_or_zeros(const std::string& name, const std::vector<int64_t>& shape) {
  return has(name) ? take(name, shape) : at::zeros(shape);
}

int64_t SourceWeights::count(const std::string& prefix) const {
  int64_t count = 0;
  for (;; ++count) {
    const std::string begin = fmt::format("{}{}.", prefix, count);
    const auto found = tensors_.lower_bound(begin);
    if (found == tensors_.end() || !found->first.starts_with(begin)) return count;
  }
}

void SourceWeights::strip(const std::string& prefix) {
  Tensors stripped;
  for (auto& [name, tensor] : tensors_)
    stripped.emplace(name.starts_with(prefix) ? name.substr(prefix.size()) : name, std::move(tensor));
  tensors_ = std::move(stripped);
}

void SourceWeights::rename(const std::string& from, const std::string& to) {
  Tensors renamed;
  for (auto& [name, tensor] : tensors_) {
    std::string other = name;
    const size_t at = other.find(from);
    if (at != std::string::npos) other.replace(at, from.size(), to);
    renamed.emplace(std::move(other), std::move(tensor));
  }
  tensors_ = std::move(renamed);
}

void SourceWeights::leave_out(const std::string& part, const std::string& why) {
  std::erase_if(tensors_, [&](const auto& item) {
    const bool found = item.first.find(part) != std::string::npos;
    if (found) left_out_[why].push_back(item.first);
    return found;
  });
}

bool SourceWeights::drop_if_equal(const std::string& name, const std::string& same) {
  const auto first = tensors_.find(name), second = tensors_.find(same);
  if (first == tensors_.end() || second == tensors_.end() || !first->second.equal(second->second))
    return false;
  tensors_.erase(first);
  return true;
}

void SourceWeights::finish() const {
  std::vector<std::string> left;
  for (const auto& [name, tensor] : tensors_)
    left.push_back(fmt::format("{} [{}]", name, fmt::join(tensor.sizes(), ", ")));
  if (left.empty() && missing_.empty()) return;
  throw InputError(fmt::format("{} is of another architecture than its configuration says{}{}", source_,
                               missing_.empty() ? "" : "; missing: " + listed(missing_),
                               left.empty() ? "" : "; without a place in the model: " + listed(left)));
}

std::vector<std::string> SourceWeights::report() const {
  std::vector<std::string> lines;
  for (const auto& [why, names] : left_out_)
    lines.push_back(fmt::format("left out: {} ({})", listed(names), why));
  return lines;
}

}  // namespace performer::convert
