// SPDX-License-Identifier: Apache-2.0
#include "performer/studies/residue_similarity.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "performer/base/error.h"
#include "performer/studies/model_input.h"

namespace performer::studies {
namespace {

using at::Tensor;

constexpr auto kResidues = static_cast<int64_t>(kAminoAcids.size());
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

int64_t place_of(char residue) {
  return static_cast<int64_t>(kAminoAcids.find(residue));
}

// [T, 20]: which amino acid each token is, rows of zeros for others.
Tensor indicators(const std::vector<int64_t>& tokens, const data::Vocabulary& vocabulary) {
  Tensor found = at::zeros({std::ssize(tokens), kResidues});
  for (int64_t i = 0; i < std::ssize(tokens); ++i) {
    for (int64_t k = 0; k < kResidues; ++k) {
      if (tokens[static_cast<size_t>(i)] == vocabulary.token_of(kAminoAcids[static_cast<size_t>(k)]))
        found[i][k] = 1;
    }
  }
  return found;
}

double correlation(const Tensor& a, const Tensor& b) {  // vectors
  if (a.numel() < 3) return kNaN;
  const Tensor x = a - a.mean(), y = b - b.mean();
  const double norm = std::sqrt((x.square().sum() * y.square().sum()).item<double>());
  const double scale = 1e-12 * std::sqrt((a.square().sum() * b.square().sum()).item<double>());
  return norm > scale ? (x * y).sum().item<double>() / norm : kNaN;  // profiles that vary by rounding do not
}

Tensor for_each_pair(const std::function<double(int64_t, int64_t)>& similarity) {
  Tensor matrix = at::empty({kResidues, kResidues}, at::kDouble);
  for (int64_t a = 0; a < kResidues; ++a) {
    for (int64_t b = 0; b <= a; ++b) matrix[a][b] = matrix[b][a] = similarity(a, b);
  }
  return matrix;
}

Tensor off_diagonal(const Tensor& matrix) {  // [190]
  return matrix.masked_select(at::ones({kResidues, kResidues}, at::kBool).triu(1));
}

nlohmann::ordered_json number_or_null(double number) {
  return std::isnan(number) ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(number);
}

nlohmann::ordered_json matrix_json(const Tensor& matrix) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (int64_t a = 0; a < kResidues; ++a) {
    nlohmann::ordered_json row = nlohmann::ordered_json::array();
    for (int64_t b = 0; b < kResidues; ++b) row.push_back(number_or_null(matrix[a][b].item<double>()));
    rows.push_back(std::move(row));
  }
  return rows;
}

nlohmann::ordered_json profile_json(const Tensor& similarity) {
  nlohmann::ordered_json json = {{"correlation", number_or_null(pair_correlation(similarity, blosum62()))},
                                 {"pairs", nlohmann::ordered_json::object()}};
  for (const auto& [a, b] : {std::pair{'D', 'E'}, std::pair{'F', 'Y'}}) {
    const double value = similarity[place_of(a)][place_of(b)].item<double>();
    const int64_t rank = 1 + off_diagonal(similarity).gt(value).sum().item<int64_t>();
    json["pairs"][std::string{a, b}] = {
        {"similarity", number_or_null(value)},
        {"rank", std::isnan(value) ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(rank)}};
  }
  json["similarity"] = matrix_json(similarity);
  return json;
}

nlohmann::ordered_json profiles_json(const ResidueAttention& attention) {
  return {{"by_heads", profile_json(similarity_by_heads(attention))},
          {"by_partners", profile_json(similarity_by_partners(attention))}};
}

}  // namespace

ResidueAttention residue_attention(LanguageModel& model, const data::Vocabulary& vocabulary,
                                   const std::vector<data::Record>& records, const Progress& progress) {
  check<UsageError>(vocabulary == data::Vocabulary::protein(),
                    "amino acids can be compared for a model of proteins only; this one reads {}",
                    vocabulary.unit());
  const at::NoGradGuard no_grad;
  model->eval();
  const int64_t heads = model->model_config().heads;
  ResidueAttention found;
  found.weight = at::zeros({model->model_config().layers * heads, kResidues, kResidues}, at::kDouble);
  found.count = at::zeros({kResidues}, at::kDouble);
  Tensor kinds;  // of the tokens of the present sequence
  const auto observer = [&](int64_t layer, const Tensor& query, const Tensor& key, const Tensor& value) {
    const Tensor values =
        kinds.to(value.scalar_type()).unsqueeze(1).expand({-1, heads, -1}).unsqueeze(0).contiguous();
    const Tensor attended = model->attention(layer)->attend({query, key, values}, {})[0];  // [T, H, 20]
    found.weight.narrow(0, layer * heads, heads) +=
        at::einsum("ta,thb->hab", {kinds.to(at::kDouble), attended.to(at::kDouble)});
  };
  for (const data::Record& record : records) {
    const auto tokens =
        model_input(model->model_config().objective, vocabulary, record.tokens, /*whole=*/true);
    kinds = indicators(tokens, vocabulary);
    found.count += kinds.sum(0);
    observe_during(model, observer, [&] { model->hidden(as_batch(tokens)); });
    found.residues += std::ssize(record.tokens);
    ++found.sequences;
    if (progress) progress(fmt::format("{} of {} sequences", found.sequences, records.size()));
  }
  return found;
}

Tensor similarity_by_heads(const ResidueAttention& attention) {
  const Tensor received = attention.weight.sum(1);                                      // [heads, 20]
  const Tensor share = (received / received.sum(1, /*keepdim=*/true)).transpose(0, 1);  // [20, heads]
  return for_each_pair([&](int64_t a, int64_t b) { return a == b ? 1.0 : correlation(share[a], share[b]); });
}

Tensor similarity_by_partners(const ResidueAttention& attention) {
  const Tensor from = attention.count.clamp_min(1).view({1, -1, 1});
  const Tensor frequency = (attention.count.clamp_min(1) / attention.count.sum()).view({1, 1, -1});
  const Tensor relative = attention.weight / from / frequency;  // [heads, 20, 20]
  const Tensor places = at::arange(kResidues, at::kLong);
  return for_each_pair([&](int64_t a, int64_t b) {
    if (a == b) return 1.0;
    const Tensor others = places.ne(a).logical_and(places.ne(b)).logical_and(attention.count.gt(0));
    const Tensor kept = relative.index_select(1, others.nonzero().flatten());
    return correlation(kept.select(2, a).flatten(), kept.select(2, b).flatten());
  });
}

double pair_correlation(const Tensor& a, const Tensor& b) {
  const Tensor x = off_diagonal(a), y = off_diagonal(b);
  const Tensor known = x.isnan().logical_or(y.isnan()).logical_not();
  return correlation(x.masked_select(known), y.masked_select(known));
}

nlohmann::ordered_json similarity_json(const ResidueAttention& model,
                                       const std::vector<ResidueAttention>& untrained) {
  nlohmann::ordered_json json = {{"sequences", model.sequences},
                                 {"residues", model.residues},
                                 {"amino_acids", kAminoAcids},
                                 {"model", profiles_json(model)},
                                 {"untrained", nlohmann::ordered_json::array()}};
  for (const ResidueAttention& random : untrained) json["untrained"].push_back(profiles_json(random));
  json["blosum62"] = matrix_json(blosum62());
  return json;
}

}  // namespace performer::studies
