// SPDX-License-Identifier: Apache-2.0
// What record_pretrained.py recorded: tokens and logits in the order of the source's ids.
#pragma once

#include <ATen/ATen.h>

#include <string>
#include <vector>

#include "performer/data/vocabulary.h"
#include "performer/models/safetensors.h"
#include "performer/nn/sequence_batch.h"

namespace performer {

inline std::string pretrained_path(const std::string& name) {
  const std::string folder = std::string(PERFORMER_SOURCE_DIR) + "/tests/models/pretrained/" + name;
  if (name == "fairseq_esm2") return folder + "/esm2_tiny.pt";
  if (name == "fairseq_roberta") return folder + "/checkpoint.pt";
  return folder;
}

struct Recording {
  at::Tensor tokens, mask, logits;  // [B, T], bool [B, T], [B, T, V]

  int64_t length(int64_t row) const { return mask[row].sum().item<int64_t>(); }

  // The recorded tokens as ids of a vocabulary that was imported.
  at::Tensor our_tokens(const data::Vocabulary& vocabulary) const {
    std::vector<int64_t> ours(static_cast<size_t>(logits.size(2)), -1);
    const auto& ids = vocabulary.source_ids();
    for (size_t id = 0; id < ids.size(); ++id) {
      if (ids[id] >= 0) ours[static_cast<size_t>(ids[id])] = static_cast<int64_t>(id);
    }
    return at::tensor(ours, at::kLong).index_select(0, tokens.flatten()).view_as(tokens);
  }

  SequenceBatch batch(const data::Vocabulary& vocabulary) const {
    SequenceBatch batch;
    batch.tokens = our_tokens(vocabulary);
    batch.positions = at::arange(tokens.size(1)).expand_as(tokens);
    batch.key_mask = mask;
    return batch;
  }

  // Largest difference between the recorded logits and ours [B, T, size], where the mask shows them.
  double difference(const at::Tensor& ours, const data::Vocabulary& vocabulary) const {
    at::Tensor theirs = at::zeros_like(logits);
    const auto& ids = vocabulary.source_ids();
    for (size_t id = 0; id < ids.size(); ++id) {
      const bool is_second =
          ids[id] >= 0 && static_cast<int64_t>(id) == vocabulary.bos() && ids[id] == ids[vocabulary.eos()];
      if (ids[id] >= 0 && !is_second)
        theirs.select(2, ids[id]).copy_(ours.select(2, static_cast<int64_t>(id)));
    }
    return ((theirs - logits).abs() * mask.unsqueeze(-1)).max().item<double>();
  }
};

inline Recording recording(const std::string& name) {
  const std::string folder = std::string(PERFORMER_SOURCE_DIR) + "/tests/models/pretrained/" + name;
  const auto file = read_safetensors(folder + "/expected.safetensors");
  return {file.tensors.at("tokens"), file.tensors.at("mask").to(at::kBool), file.tensors.at("logits")};
}

}  // namespace performer
