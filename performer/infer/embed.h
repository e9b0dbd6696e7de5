// SPDX-License-Identifier: Apache-2.0
// Embeddings of sequences: what a model's layers make of them, pooled over the tokens or token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "performer/data/reader.h"
#include "performer/infer/embedding_sink.h"
#include "performer/infer/reading_ranks.h"
#include "performer/models/language_model.h"

namespace performer {

// mean and max are over the symbols of a sequence, markers left out. first is the marker before them (BOS, in
// other models CLS), which in causal models sees nothing but itself. tokens is each symbol's own row.
enum class Pooling { mean, max, first, tokens };
Pooling parse_pooling(const std::string& name);  // UsageError for an unknown name
const std::vector<std::string>& pooling_names();

// Layers as users count them, 0 (the embedding) to N (after the last block and the final norm), or from the
// end, -1 being N: sorted, each once. Throws UsageError for others, naming the range.
std::vector<int64_t> resolve_layers(const std::vector<int64_t>& wanted, int64_t blocks);

struct EmbedRequest {
  Pooling pooling = Pooling::mean;
  int64_t batch_tokens = 16384;  // of short sequences side by side
  // Longer sequences are read in chunks of so many tokens (models/long_sequence.h). Where a model cannot,
  // sequences go through it whole, up to most_whole tokens.
  int64_t chunk = 8192;
  int64_t most_whole = 65536;
  std::string temporary_folder = "/tmp";
  // Null: this process alone. Otherwise all ranks call embed(), and what it writes and tells comes on rank 0;
  // the sinks of the others give their layers and width and are not written to.
  const ReadingRanks* ranks = nullptr;
};

// What is told on the way.
struct EmbedProgress {
  std::function<void(const std::string& notice)> note = {};  // a sentence, once
  std::function<void(int64_t sequences, int64_t tokens)> done =
      {};  // so far; tokens of a long sequence by shares
};

// Embeds all that `reader` reads into `file`, in its order; `source` is what messages call the input.
// Sequences that the file has already, of an interrupted run, are passed over. Batches hold sequences of
// similar length. Ranks divide batches and long sequences, and rows do not depend on their number but for
// sequences in slices, which agree up to rounding. Returns what the reader met. Throws what the reader
// throws; UsageError when its vocabulary has another size than the model's and for slices that the model
// cannot read in; InputError naming the record when its length is beyond the model's positions or beyond
// most_whole where the model cannot read in chunks, and when the finished sequences are not the first ones of
// the input.
data::ReadReport embed(LanguageModel& model, data::Reader& reader, const std::string& source,
                       const EmbedRequest& request, EmbeddingSink& file, const EmbedProgress& progress = {});

// Tokens that a model reads of a sequence beside its own: BOS, and EOS where it is not causal.
int64_t embedding_markers(const LanguageModel& model);
// A hash of all weights, to tell models apart.
std::string weights_fingerprint(const LanguageModel& model);

}  // namespace performer
