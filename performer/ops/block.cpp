// SPDX-License-Identifier: Apache-2.0
#include "performer/ops/block.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "performer/kernels/block.h"
#include "performer/ops/composed.h"
#include "performer/ops/mask_runs.h"

namespace performer::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kBlockGrain = 1 << 15;  // elements a thread takes at least
constexpr int64_t kMostPartSums = 64;     // of rows that are summed apart
constexpr int64_t kFewestPartRows = 64;

bool is_vector_type(const at::Tensor& x) {
  return x.device().is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16);
}
// A vector of as many floats as x has columns.
bool is_row_of(const at::Tensor& row, const at::Tensor& x) {
  return row.device().is_cpu() && row.scalar_type() == at::kFloat && row.dim() == 1 && x.dim() >= 1 &&
         row.numel() == x.size(-1);
}

kernels::DataType type_of(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat ? kernels::DataType::float32 : kernels::DataType::bfloat16;
}
const char* row_of(const at::Tensor& x, int64_t row) {
  return static_cast<const char*>(x.const_data_ptr()) +
         row * x.size(-1) * static_cast<int64_t>(x.element_size());
}
char* mutable_row_of(const at::Tensor& x, int64_t row) {
  return static_cast<char*>(x.mutable_data_ptr()) + row * x.size(-1) * static_cast<int64_t>(x.element_size());
}
const float* floats(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<float>() : nullptr;
}

int64_t rows_of(const at::Tensor& x) {
  return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1);
}

// A mask that was drawn, and what of it falls to a tensor.
struct DrawnMask {
  kernels::DropoutMask mask;
  MaskRuns runs;
};

uint64_t key_of(const Dropping& dropping) {
  const double probability = dropping.probability;
  TORCH_CHECK_VALUE(probability >= 0 && probability < 1,
                    "a dropout probability must be at least 0 and below 1, not ", probability);
  return probability > 0 ? draw_mask_key() : 0;
}

DrawnMask mask_of(const at::Tensor& x, const Dropping& dropping, uint64_t key) {
  if (dropping.probability == 0) return {{}, {x.numel(), 0, 0}};
  return {{key, dropping.probability}, mask_runs(x, dropping.window)};
}

// body(rows and their place in the mask, first row) over rows begin .. end - 1 of x.
template <class Body>
void for_rows(const at::Tensor& x, const DrawnMask& drawn, int64_t begin, int64_t end, const Body& body) {
  const int64_t columns = x.size(-1);
  for_each_run(drawn.runs, begin * columns, end * columns, [&](int64_t first, int64_t last, int64_t place) {
    body(kernels::MaskedRows{(last - first) / columns, columns, place, drawn.mask}, first / columns);
  });
}

// The same over all rows of x, on all threads.
template <class Body>
void for_all_rows(const at::Tensor& x, const DrawnMask& drawn, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kBlockGrain / std::max<int64_t>(1, x.size(-1)));
  at::parallel_for(0, rows_of(x), grain,
                   [&](int64_t begin, int64_t end) { for_rows(x, drawn, begin, end, body); });
}

// Sums over rows, which are the same for any number of threads: body(begin, end, sums) adds those of its rows
// to `sums`, and calls for parts of fixed size are added up in order. -> [width]
template <class Body>
at::Tensor sum_rows(int64_t rows, int64_t width, const Body& body) {
  const int64_t size = std::max(kFewestPartRows, (rows + kMostPartSums - 1) / kMostPartSums);
  const int64_t parts = (rows + size - 1) / size;
  const at::Tensor sums = at::zeros({parts, width}, at::kFloat);
  auto* data = sums.mutable_data_ptr<float>();
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      body(part * size, std::min(rows, (part + 1) * size), data + part * width);
  });
  return sums.sum(0);
}

std::optional<kernels::Activation> fused_activation(const std::string& name) {
  if (name == "gelu-tanh") return kernels::Activation::gelu_tanh;
  if (name == "relu") return kernels::Activation::relu;
  return std::nullopt;
}

void keep(AutogradContext* context, const Dropping& dropping, uint64_t key) {
  context->saved_data["probability"] = dropping.probability;
  context->saved_data["start"] = dropping.window.start;
  context->saved_data["length"] = dropping.window.length;
  context->saved_data["key"] = static_cast<int64_t>(key);
}
DrawnMask kept_mask(AutogradContext* context, const at::Tensor& x) {
  const auto number = [&](const char* name) { return context->saved_data[name].toInt(); };
  const Dropping dropping{context->saved_data["probability"].toDouble(), {number("start"), number("length")}};
  return mask_of(x, dropping, static_cast<uint64_t>(number("key")));
}

struct Activate : torch::autograd::Function<Activate> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& bias,
                            int64_t activation, const Dropping& dropping) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const uint64_t key = key_of(dropping);
    const at::Tensor input = x.contiguous(), shift = bias.contiguous();
    const at::Tensor output = at::empty_like(input);
    const DrawnMask mask = mask_of(input, dropping, key);
    for_all_rows(input, mask, [&](const kernels::MaskedRows& at, int64_t row) {
      kernels::activation_forward({at, static_cast<kernels::Activation>(activation), type_of(input),
                                   row_of(input, row), floats(shift), mutable_row_of(output, row)});
    });
    keep(context, dropping, key);
    context->save_for_backward({input, shift});
    context->saved_data["activation"] = activation;
    return output;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &shift = saved[1];
    const at::Tensor gradient = gradients[0].to(input.scalar_type()).contiguous();
    const at::Tensor result = at::empty_like(input);
    const auto activation = static_cast<kernels::Activation>(context->saved_data["activation"].toInt());
    const DrawnMask mask = kept_mask(context, input);
    const auto part = [&](int64_t begin, int64_t end, float* sums) {
      for_rows(input, mask, begin, end, [&](const kernels::MaskedRows& at, int64_t row) {
        kernels::activation_backward(
            {{at, activation, type_of(input), row_of(input, row), floats(shift), nullptr},
             row_of(gradient, row),
             mutable_row_of(result, row),
             sums});
      });
    };
    const at::Tensor sums = sum_rows(rows_of(input), input.size(-1), part);
    return {result, sums, {}, {}};
  }
};

struct AddBranch : torch::autograd::Function<AddBranch> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& branch,
                            const std::optional<at::Tensor>& bias, const Dropping& dropping) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const uint64_t key = key_of(dropping);
    const at::Tensor input = x.contiguous(), added = branch.contiguous();
    const at::Tensor shift = bias ? bias->contiguous() : at::Tensor();
    const at::Tensor output = at::empty_like(input);
    for_all_rows(input, mask_of(input, dropping, key), [&](const kernels::MaskedRows& at, int64_t row) {
      kernels::branch_forward({at, type_of(added), floats(input) + row * at.columns, row_of(added, row),
                               floats(shift), output.mutable_data_ptr<float>() + row * at.columns});
    });
    keep(context, dropping, key);
    context->saved_data["half"] = added.scalar_type() == at::kBFloat16;
    context->saved_data["bias"] = bias.has_value();
    return output;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const at::Tensor gradient = gradients[0].contiguous();
    const bool half = context->saved_data["half"].toBool(), bias = context->saved_data["bias"].toBool();
    const at::Tensor result = at::empty(gradient.sizes(), half ? at::kBFloat16 : at::kFloat);
    const DrawnMask mask = kept_mask(context, gradient);
    const auto rows = [&](float* sums) {
      return [&, sums](const kernels::MaskedRows& at, int64_t row) {
        kernels::branch_backward(
            {at, type_of(result), floats(gradient) + row * at.columns, mutable_row_of(result, row), sums});
      };
    };
    if (!bias) {
      for_all_rows(gradient, mask, rows(nullptr));
      return {gradient, result, {}, {}};
    }
    const auto part = [&](int64_t begin, int64_t end, float* sums) {
      for_rows(gradient, mask, begin, end, rows(sums));
    };
    const at::Tensor sums = sum_rows(rows_of(gradient), gradient.size(-1), part);
    return {gradient, result, sums, {}};
  }
};

struct LayerNorm : torch::autograd::Function<LayerNorm> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& gain,
                            const at::Tensor& bias, double epsilon, at::ScalarType type) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const at::Tensor input = x.contiguous(), scaled = gain.contiguous(), shift = bias.contiguous();
    const int64_t rows = rows_of(input), columns = input.size(-1);
    const at::Tensor output = at::empty(input.sizes(), input.options().dtype(type));
    const at::Tensor mean = at::empty({rows}, at::kFloat), scale = at::empty({rows}, at::kFloat);
    const int64_t grain = std::max<int64_t>(1, kBlockGrain / std::max<int64_t>(1, columns));
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      kernels::norm_forward({end - begin, columns, type_of(output), floats(input) + begin * columns,
                             floats(scaled), floats(shift), epsilon, mutable_row_of(output, begin),
                             mean.mutable_data_ptr<float>() + begin,
                             scale.mutable_data_ptr<float>() + begin});
    });
    context->save_for_backward({input, scaled, mean, scale});
    context->saved_data["type"] = static_cast<int64_t>(type);
    return output;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &gain = saved[1];
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    const at::Tensor gradient = gradients[0].to(type).contiguous();
    const at::Tensor result = at::empty_like(input);
    const int64_t columns = input.size(-1);
    const auto part = [&](int64_t begin, int64_t end, float* sums) {
      kernels::norm_backward({end - begin, columns, type_of(gradient), floats(input) + begin * columns,
                              floats(gain), floats(saved[2]) + begin, floats(saved[3]) + begin,
                              row_of(gradient, begin), result.mutable_data_ptr<float>() + begin * columns,
                              sums, sums + columns});
    };
    const at::Tensor sums = sum_rows(rows_of(input), 2 * columns, part);
    return {result, sums.narrow(0, 0, columns), sums.narrow(0, columns, columns), {}, {}};
  }
};

}  // namespace

at::Tensor activate(const std::string& name, const at::Tensor& x, const at::Tensor& bias,
                    const Dropping& dropping) {
  const auto fused = fused_activation(name);
  if (fused && bias.defined() && is_vector_type(x) && is_row_of(bias, x))
    return Activate::apply(x, bias, static_cast<int64_t>(*fused), dropping);
  const at::Tensor biased = bias.defined() ? x + bias.to(x.scalar_type()) : x;
  const at::Tensor y = name == "silu" ? at::silu(biased) : activation(name, biased);
  return dropout(y, dropping.probability, dropping.window);
}

at::Tensor add_branch(const at::Tensor& x, const at::Tensor& branch, const at::Tensor& bias,
                      const Dropping& dropping) {
  if (is_vector_type(branch) && x.device().is_cpu() && x.scalar_type() == at::kFloat &&
      x.sizes() == branch.sizes() && x.dim() >= 1 && (!bias.defined() || is_row_of(bias, x))) {
    return AddBranch::apply(x, branch, bias.defined() ? std::optional(bias) : std::nullopt, dropping);
  }
  const at::Tensor y = bias.defined() ? branch + bias.to(branch.scalar_type()) : branch;
  return x + dropout(y, dropping.probability, dropping.window);
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& gain, const at::Tensor& bias, double epsilon,
                      at::ScalarType type) {
  const bool fits = type == at::kFloat || type == at::kBFloat16;
  if (fits && x.device().is_cpu() && x.scalar_type() == at::kFloat && is_row_of(gain, x) &&
      is_row_of(bias, x))
    return LayerNorm::apply(x, gain, bias, epsilon, type);
  return at::layer_norm(x, gain.sizes(), gain, bias, epsilon).to(type);
}

}  // namespace performer::ops
