// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/predict.h"

#include <ATen/ATen.h>

#include "performer/base/error.h"

namespace performer {
namespace {

// Turns embeddings of the last layer into predictions as they come: of a long sequence nothing but these is
// kept.
class Predictor final : public EmbeddingSink {
 public:
  Predictor(const ModelFolder& folder, const PredictionSink& sink)
      : head_(folder.head),
        sink_(sink),
        layers_({std::ssize(folder.model->blocks())}),
        width_(folder.model->model_config().width) {}

  const std::vector<int64_t>& layers() const override { return layers_; }
  int64_t width() const override { return width_; }

  void begin(const data::Record& record, int64_t rows) override {
    record_ = &record;
    values_ = at::empty({rows, head_->config().outputs()}, at::kFloat);
  }
  void write(int64_t first, int64_t /*place*/, const at::Tensor& values) override {
    values_.narrow(0, first, values.size(0)).copy_(head_->predictions(head_->forward(values.to(at::kFloat))));
  }
  void end() override { sink_(*record_, values_); }

 private:
  const PredictionHead& head_;
  const PredictionSink& sink_;
  std::vector<int64_t> layers_;
  int64_t width_;
  const data::Record* record_ = nullptr;
  at::Tensor values_;
};

}  // namespace

data::ReadReport predict(ModelFolder& folder, data::Reader& reader, const std::string& source,
                         EmbedRequest request, const PredictionSink& sink, const EmbedProgress& progress) {
  check<UsageError>(!folder.head.is_empty(),
                    "this model predicts nothing but tokens: fine-tune it with labels first (performer train "
                    "--from MODEL --task KIND --labels TABLE)");
  const HeadConfig& head = folder.head->config();
  request.pooling = head.per_token() ? Pooling::tokens : parse_pooling(head.pool);
  Predictor predictor(folder, sink);
  return embed(folder.model, reader, source, request, predictor, progress);
}

}  // namespace performer
