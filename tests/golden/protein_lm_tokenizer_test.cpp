// SPDX-License-Identifier: Apache-2.0
// protein_lm's vocabularies, domain and batches (domains.py, data.py), and our own vocabulary beside its
// default.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "performer/base/error.h"
#include "performer/data/vocabulary.h"
#include "performer/references/protein_lm/data.h"
#include "tests/golden/golden.h"

namespace performer::golden {
namespace {

namespace protein_lm = references::protein_lm;

using Strings = std::vector<std::string>;

at::Tensor int32_of(const protein_lm::Tokens& tokens) {
  return at::tensor(tokens, at::kLong).to(at::kInt);
}

protein_lm::Vocabulary vocabulary_of(const Case& item) {
  protein_lm::VocabularyOptions with;
  with.anomalous = item.options.value("anomalous", with.anomalous);
  with.align = item.options.value("align", with.align);
  with.bos = item.options.value("include_bos", with.bos);
  with.eos = item.options.value("include_eos", with.eos);
  with.pad = item.options.value("include_pad", with.pad);
  with.mask = item.options.value("include_mask", with.mask);
  return protein_lm::Vocabulary(with);
}

bool accepts(const protein_lm::Vocabulary& vocabulary, const std::string& letter) {
  try {
    vocabulary.encode(letter);
  } catch (const InputError&) {
    return false;
  }
  return true;
}

// Our vocabulary is the reference's default one; J alone, which the reference refuses, is read as X.
void expect_own_vocabulary(const Case& item) {
  const protein_lm::Vocabulary theirs = vocabulary_of(item);
  if (theirs.letters() != protein_lm::Vocabulary().letters()) return;
  const data::Vocabulary ours = data::Vocabulary::protein();
  const auto& strings = item.entry.at("strings");
  for (const std::string& sequence : strings.at("sequences").get<Strings>()) {
    const std::vector<data::Token> ids = ours.encode(sequence);
    EXPECT_EQ(std::vector<int64_t>(ids.begin(), ids.end()), theirs.encode(sequence)) << item.id;
    EXPECT_EQ(ours.decode(ids), sequence) << item.id;
  }
  for (const std::string& bad : strings.at("bad_characters").get<Strings>()) {
    if (bad[0] == 'J') {
      EXPECT_EQ(ours.decode(ours.encode("J")), "X");
    } else {
      EXPECT_THROW(ours.encode(bad.substr(0, 1)), InputError) << bad;
    }
  }
}

void run_domain(Group& group, const Case& item) {
  const protein_lm::Vocabulary vocabulary = vocabulary_of(item);
  const auto& strings = item.entry.at("strings");
  std::string letters;
  for (const std::string& letter : strings.at("vocab_tokens").get<Strings>()) letters += letter;
  EXPECT_EQ(vocabulary.letters(), letters) << item.id;
  group.expect(item, "vocab_size", at::scalar_tensor(vocabulary.size(), at::kLong));
  group.expect(item, "special_ids_bos_eos_pad_mask",
               at::tensor({vocabulary.bos().value_or(-1), vocabulary.eos().value_or(-1),
                           vocabulary.pad().value_or(-1), vocabulary.mask().value_or(-1)}));
  const auto sequences = strings.at("sequences").get<Strings>(),
             decoded = strings.at("decoded").get<Strings>(),
             stopped = strings.at("decoded_stop_at_eos").get<Strings>(),
             of_padded = strings.at("domain_decode_of_padded").get<Strings>();
  const auto length = item.option<int64_t>("length");
  std::vector<protein_lm::Tokens> encoded;
  for (size_t i = 0; i < sequences.size(); ++i) {
    encoded.push_back(vocabulary.encode(sequences[i]));
    group.expect(item, "ids" + std::to_string(i), int32_of(encoded[i]));
    EXPECT_EQ(vocabulary.decode(encoded[i]), decoded[i]) << item.id;
    EXPECT_EQ(vocabulary.decode(encoded[i], /*stop_at_eos=*/true), stopped[i]) << item.id;
  }
  const at::Tensor padded = protein_lm::pad_sequences(encoded, length, vocabulary.eos().value());
  group.expect(item, "encode_pad_true", padded);
  protein_lm::Tokens valid;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const at::Tensor row = padded[static_cast<int64_t>(i)];
    const std::span tokens(row.const_data_ptr<int64_t>(), static_cast<size_t>(row.numel()));
    valid.push_back(protein_lm::is_valid(tokens, vocabulary, length));
    EXPECT_EQ(vocabulary.decode(tokens, /*stop_at_eos=*/true), of_padded[i]) << item.id;
  }
  group.expect(item, "is_valid_padded", int32_of(valid));
  for (const std::string& bad : strings.at("bad_characters").get<Strings>()) {
    EXPECT_EQ(accepts(vocabulary, bad.substr(0, 1)), bad.ends_with("accepted")) << item.id << " " << bad;
  }
  expect_own_vocabulary(item);
}

void run_pipeline(Group& group, const Case& item) {
  const auto whole_number = [&](const char* name) {
    const auto found = item.options.find(name);
    return found == item.options.end() || found->is_null() ? int64_t{0} : found->get<int64_t>();
  };
  const protein_lm::BatchOptions with{.length = whole_number("length"),
                                      .batch_size = item.option<int64_t>("batch_size"),
                                      .pack_length = whole_number("pack_length")};
  std::vector<protein_lm::Tokens> sequences;
  for (const std::string& sequence : item.entry.at("strings").at("sequences").get<Strings>()) {
    sequences.push_back(protein_lm::Vocabulary().encode(sequence));
  }
  const std::vector<at::Tensor> batches = protein_lm::batches(sequences, with);
  EXPECT_EQ(batches.size(), item.outputs.size()) << item.id;
  for (size_t i = 0; i < batches.size(); ++i) group.expect(item, "batch" + std::to_string(i), batches[i]);
}

TEST(GoldenTokenizer, AgreesWithTheReference) {
  run_group("plm_tokenizer", [&](Group& group, const Case& item) {
    if (item.entry.at("strings").contains("vocab_tokens")) {
      run_domain(group, item);
    } else {
      run_pipeline(group, item);
    }
  });
}

}  // namespace
}  // namespace performer::golden
