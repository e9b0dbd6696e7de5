// SPDX-License-Identifier: Apache-2.0
// What a fine-tuned model predicts of sequences of any length, of each as a whole or token by token.
#pragma once

#include <functional>
#include <string>

#include "performer/data/reader.h"
#include "performer/infer/embed.h"
#include "performer/models/folder.h"

namespace performer {

// [rows, outputs] of PredictionHead::predictions(): probabilities of the classes or a number, one row for a
// sequence, or one for each of its tokens.
using PredictionSink = std::function<void(const data::Record& record, const at::Tensor& values)>;

// Reads all that `reader` reads as embed() does, with its batches and chunks, and hands the predictions to
// `sink` in the order of the input. The pooling of `request` is that of the head. Throws UsageError for a
// model without a head, and what embed() throws.
data::ReadReport predict(ModelFolder& folder, data::Reader& reader, const std::string& source,
                         EmbedRequest request, const PredictionSink& sink,
                         const EmbedProgress& progress = {});

}  // namespace performer
