// SPDX-License-Identifier: Apache-2.0
#include "performer/models/convert/ctranslate2.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/models/convert/source_weights.h"
#include "performer/models/import_weights.h"
#include "performer/models/readers/ctranslate2.h"

namespace performer::convert {
namespace {

// Sines in the first half, cosines in the second; positions count from 1, and the slowest pair turns with the
// rate 1/10000 (src/layers/common.cc, SinusoidalPositionEncoder).
at::Tensor sinusoids_from_one(int64_t length, int64_t width) {
  const double step = std::log(10000.0) / static_cast<double>(width / 2 - 1);
  const at::Tensor rates = at::exp(at::arange(width / 2, at::kDouble) * -step);
  const at::Tensor angles = at::arange(1, length + 1, at::kDouble).unsqueeze(1) * rates;
  return at::cat({angles.sin(), angles.cos()}, 1).to(at::kFloat);
}

class Ctranslate2Importer {
 public:
  Ctranslate2Importer(SourceWeights& weights, const EncoderDecoderConfig& config)
      : weights_(weights), config_(config) {}

  Tensors all() {
    stack("encoder", config_.encoder, config_.source_vocabulary);
    stack("decoder", config_.decoder, config_.target_vocabulary);
    const int64_t vocabulary = config_.target_vocabulary, width = config_.decoder.width;
    if (!config_.decoder.tied_output)
      ours_["decoder.output.weight"] = weights_.take("decoder/projection/weight", {vocabulary, width});
    ours_[config_.decoder.tied_output ? "decoder.output_bias" : "decoder.output.bias"] =
        weights_.take_or_zeros("decoder/projection/bias", {vocabulary});
    weights_.finish();
    return std::move(ours_);
  }

 private:
  void linear(const std::string& theirs, const std::vector<std::string>& targets, int64_t out, int64_t in) {
    const int64_t rows = out / static_cast<int64_t>(targets.size());
    const at::Tensor weight = weights_.take(theirs + "/weight", {out, in}),
                     bias = weights_.take(theirs + "/bias", {out});
    for (size_t i = 0; i < targets.size(); ++i) {
      ours_[targets[i] + ".weight"] = weight.narrow(0, static_cast<int64_t>(i) * rows, rows);
      ours_[targets[i] + ".bias"] = bias.narrow(0, static_cast<int64_t>(i) * rows, rows);
    }
  }
  void norm(const std::string& theirs, const std::string& target, int64_t width) {
    ours_[target + ".weight"] = weights_.take(theirs + "/gamma", {width});
    ours_[target + ".bias"] = weights_.take(theirs + "/beta", {width});
  }

  void stack(const std::string& side, const ModelConfig& model, int64_t vocabulary) {
    const int64_t width = model.width;
    ours_[side + ".embedding.weight"] = weights_.take(side + "/embeddings/weight", {vocabulary, width});
    ours_[side + ".positions"] = sinusoids_from_one(model.max_length, width);
    norm(side + "/layer_norm", side + ".final_norm", width);
    for (int64_t layer = 0; layer < model.layers; ++layer) {
      const std::string theirs = fmt::format("{}/layer_{}/", side, layer),
                        block = fmt::format("{}.blocks_{}.", side, layer), own = block + "attention.",
                        cross = block + "cross_attention.";
      norm(theirs + "self_attention/layer_norm", block + "attention_norm", width);
      linear(theirs + "self_attention/linear_0", {own + "query", own + "key", own + "value"}, 3 * width,
             width);
      linear(theirs + "self_attention/linear_1", {own + "out"}, width, width);
      if (side == "decoder") {
        norm(theirs + "attention/layer_norm", block + "cross_norm", width);
        linear(theirs + "attention/linear_0", {cross + "query"}, width, width);
        linear(theirs + "attention/linear_1", {cross + "key", cross + "value"}, 2 * width, width);
        linear(theirs + "attention/linear_2", {cross + "out"}, width, width);
      }
      norm(theirs + "ffn/layer_norm", block + "ffn_norm", width);
      linear(theirs + "ffn/linear_0", {block + "up"}, model.ffn, width);
      linear(theirs + "ffn/linear_1", {block + "down"}, width, model.ffn);
    }
  }

  SourceWeights& weights_;
  const EncoderDecoderConfig& config_;
  Tensors ours_;
};

int64_t layers_of(const SourceWeights& weights, const std::string& side) {
  int64_t layers = 0;
  while (weights.has(fmt::format("{}/layer_{}/ffn/linear_0/weight", side, layers))) ++layers;
  return layers;
}

ModelConfig side_config(const SourceWeights& weights, const std::string& side, int64_t max_length) {
  ModelConfig model;
  model.layers = layers_of(weights, side);
  model.width = weights.size(side + "/embeddings/weight", 1);
  model.ffn = weights.size(side + "/layer_0/ffn/linear_0/weight", 0);
  model.max_length = max_length;
  model.norm = "pre";
  model.norm_epsilon = 1e-5;
  model.positions = "learned";
  model.embedding_scale = std::sqrt(static_cast<double>(model.width));
  model.activation = "relu";
  model.attention_bias = true;
  model.output_scale = 1;
  return model;
}

// The number of heads: a variable of newer files, a part of the specification's name in older ones.
int64_t heads_of(const Ctranslate2Model& file, const std::string& side, const std::string& path) {
  const auto found = file.stored.tensors.find(side + "/num_heads");
  if (found != file.stored.tensors.end() && found->second.numel() == 1) return found->second.item<int64_t>();
  if (file.specification == "TransformerBase") return 8;
  if (file.specification == "TransformerBig") return 16;
  throw InputError(
      fmt::format("{}: the specification {} does not say the number of heads", path, file.specification));
}

}  // namespace

EncoderDecoder import_ctranslate2(const std::string& given, const TranslationAttention& attention,
                                  int64_t max_length) {
  namespace fs = std::filesystem;
  const std::string path = fs::is_directory(given) ? (fs::path(given) / "model.bin").string() : given;
  Ctranslate2Model file = read_ctranslate2(path);
  SourceWeights weights(file.stored.tensors, path);
  EncoderDecoderConfig config;
  config.encoder = side_config(weights, "encoder", max_length);
  config.decoder = side_config(weights, "decoder", max_length);
  config.encoder.heads = heads_of(file, "encoder", path);
  config.decoder.heads = heads_of(file, "decoder", path);
  config.encoder_attention = attention.encoder;
  config.decoder_attention = attention.decoder;
  config.source_vocabulary = weights.size("encoder/embeddings/weight", 0);
  config.target_vocabulary = weights.size("decoder/embeddings/weight", 0);
  config.decoder.tied_output = !weights.has("decoder/projection/weight");
  for (const char* side : {"encoder", "decoder"})
    weights.leave_out(std::string(side) + "/num_heads", "a size");
  const Tensors tensors = Ctranslate2Importer(weights, config).all();
  EncoderDecoder model(config);
  import_weights(*model, tensors);
  model->eval();
  return model;
}

}  // namespace performer::convert
