// SPDX-License-Identifier: Apache-2.0
#include "performer/data/store.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>

#include "performer/base/error.h"
#include "performer/data/fingerprint.h"
#include "performer/data/json.h"

namespace performer::data {
namespace {

// Sections of the file beside those of labels. "corpus" is a JSON text; "vocabulary" that of tokenizer.json.
constexpr const char *kTokens = "tokens", *kOffsets = "offsets", *kDescription = "corpus",
                     *kVocabulary = "vocabulary";

nlohmann::json to_json(const ReadReport& report) {
  nlohmann::json lines = nlohmann::json::array();
  for (const ReportLine& line : report.lines) lines.push_back({{"count", line.count}, {"text", line.text}});
  return {{"records", report.records},
          {"tokens", report.tokens},
          {"records_name", report.records_name},
          {"tokens_name", report.tokens_name},
          {"lines", lines}};
}

ReadReport report_from(const nlohmann::json& json) {
  ReadReport report;
  json.at("records").get_to(report.records);
  json.at("tokens").get_to(report.tokens);
  json.at("records_name").get_to(report.records_name);
  json.at("tokens_name").get_to(report.tokens_name);
  for (const nlohmann::json& line : json.at("lines")) report.add(line.at("count"), line.at("text"));
  return report;
}

void write_description(SectionWriter& file, const Reader& reader, uint64_t fingerprint) {
  const std::optional<ImageShape> shape = reader.image_shape();
  const nlohmann::json description = {{"format", reader.format()},
                                      {"image_shape", shape ? to_text(*shape) : ""},
                                      {"fingerprint", fingerprint},
                                      {"report", to_json(reader.report())}};
  file.add_text(kDescription, description.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  file.add_text(kVocabulary, reader.vocabulary().to_json());
}

SectionFile read_files(Reader& reader, const std::string& directory, const HashSplit& split,
                       LabelledSequences* labels) {
  SectionWriter file(directory, "sequences", "two bytes a token");
  std::vector<int64_t> offsets{0};
  uint64_t fingerprint = 0;
  int64_t without_label = 0;
  Record record;
  file.begin(kTokens);
  while (reader.next(record)) {
    if (!split.takes(record.tokens, reader.vocabulary())) continue;
    if (labels != nullptr && !labels->take(record, reader.format())) {
      ++without_label;
      continue;
    }
    check_room(std::ssize(offsets) - 1);
    file.append_numbers(std::span<const Token>(record.tokens));
    offsets.push_back(offsets.back() + std::ssize(record.tokens));
    fingerprint = extended_fingerprint(fingerprint, sequence_hash(record.tokens, reader.vocabulary()));
  }
  const ReadReport report = reader.report();
  const int64_t size = std::ssize(offsets) - 1;
  check<InputError>(size > 0 || without_label == 0, "none of the {} {} read has a label of its id",
                    without_label, report.records_name);
  check_not_empty(size, report.records, split);
  file.begin(kOffsets);
  file.append_numbers(std::span<const int64_t>(offsets));
  write_description(file, reader, fingerprint);
  if (labels != nullptr) labels->write(file);
  return file.finish();
}

SectionFile read_files(const std::vector<std::string>& files, const std::string& directory,
                       const DataConfig& config, const HashSplit& split,
                       const std::optional<Vocabulary>& vocabulary, const ReadProgress& progress,
                       LabelledSequences* labels) {
  check_split(split);
  const std::unique_ptr<Reader> reader = open_reader(files, config, vocabulary, progress);
  return read_files(*reader, directory, split, labels);
}

}  // namespace

SequenceStore::SequenceStore(const std::vector<std::string>& files, const std::string& directory,
                             const DataConfig& config, const HashSplit& split,
                             const std::optional<Vocabulary>& vocabulary, const ReadProgress& progress,
                             LabelledSequences* labels)
    : SequenceStore(read_files(files, directory, config, split, vocabulary, progress, labels), Origin::own) {}

SequenceStore::SequenceStore(SectionFile file) : SequenceStore(std::move(file), Origin::other) {}

SequenceStore::SequenceStore(SectionFile file, Origin origin) : file_(std::move(file)) {
  read_description();
  tokens_ = file_.numbers<Token>(kTokens);
  offsets_ = file_.numbers<int64_t>(kOffsets);
  check_offsets();
  if (origin == Origin::other) check_tokens();
  file_.expect_random_reads();  // training reads in a shuffled order
}

void SequenceStore::read_description() {
  vocabulary_ = Vocabulary::from_json(std::string(file_.text(kVocabulary)), file_.name());
  constexpr const char* kDamaged = "damaged description of the corpus";
  std::string shape;
  read_json(file_.name(), kDamaged, [&] {
    const auto description = nlohmann::json::parse(file_.text(kDescription));
    description.at("format").get_to(format_);
    description.at("image_shape").get_to(shape);
    description.at("fingerprint").get_to(fingerprint_);
    report_ = report_from(description.at("report"));
  });
  try {
    if (!shape.empty()) shape_ = parse_image_shape(shape);
  } catch (const UsageError& error) {  // here it is the file that is wrong, not the request
    throw InputError(fmt::format("{}: {}: {}", file_.name(), kDamaged, error.what()));
  }
}

void SequenceStore::check_offsets() const {
  check<InputError>(offsets_.size() >= 2 && offsets_.front() == 0 && offsets_.back() == std::ssize(tokens_),
                    "{}: expected the offsets of sequences of {} tokens from 0 on, found {} offsets",
                    file_.name(), tokens_.size(), offsets_.size());
  check_room(size() - 1);
  for (size_t i = 1; i < offsets_.size(); ++i) {
    const int64_t begin = offsets_[i - 1], end = offsets_[i];
    // The order first: the difference of any two numbers need not be one.
    const bool holds = begin >= 0 && end > begin && (!shape_ || end - begin == shape_->tokens());
    check<InputError>(holds, "{}: sequence {} begins at token {} and ends at {}", file_.name(), i, begin,
                      end);
  }
}

void SequenceStore::check_tokens() const {
  const auto bad = std::ranges::find_if(
      tokens_, [symbols = vocabulary_->symbols()](Token token) { return token >= symbols; });
  check<InputError>(bad == tokens_.end(), "{}: token {} is {}, but the vocabulary has {} symbols",
                    file_.name(), bad - tokens_.begin() + 1, bad == tokens_.end() ? 0 : *bad,
                    vocabulary_->symbols());
}

}  // namespace performer::data
