// SPDX-License-Identifier: Apache-2.0
#include "cli/samples.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <filesystem>

#include "cli/output.h"
#include "performer/base/error.h"
#include "performer/data/fasta/fasta.h"
#include "performer/data/image/picture.h"

namespace performer::cli {

namespace {

std::string name_of(const GeneratedSequence& sequence) {
  return fmt::format("generated_{}", sequence.index + 1);
}

// What there is to say about a sample, for FASTA headers and, where a file has no room for it, the log.
std::string describe(const GeneratedSequence& sequence) {
  const double mean =
      sequence.sampled > 0 ? sequence.log_likelihood / static_cast<double>(sequence.sampled) : 0;
  return fmt::format("{} length={} mean_log_likelihood={:.4f} ended={}", name_of(sequence),
                     sequence.tokens.size(), mean, sequence.ended ? "yes" : "no");
}

// Samples as texts, in one file or in a file each.
class TextWriter : public SampleWriter {
 public:
  TextWriter(const data::Vocabulary& vocabulary, Output* out, OutputFolder* folder)
      : vocabulary_(vocabulary), out_(out), folder_(folder) {}

  void write(const GeneratedSequence& sequence) override {
    const std::string text = vocabulary_.decode(sequence.tokens);
    if (folder_ != nullptr) {
      folder_->write(name_of(sequence) + ending(), in_own_file(sequence, text));
    } else {
      out_->write(in_common_file(sequence, text));
    }
  }
  void finish() override {
    if (out_ != nullptr) out_->finish();
  }

 protected:
  virtual std::string ending() const { return ".txt"; }
  virtual std::string in_own_file(const GeneratedSequence& sequence, const std::string& text) {
    spdlog::info("{}", describe(sequence));
    return text;
  }
  // A blank line between documents, as data.documents = blank-line reads them; a single one stays as it is.
  virtual std::string in_common_file(const GeneratedSequence& sequence, const std::string& text) {
    spdlog::info("{}", describe(sequence));
    const bool first = sequence.index == 0;
    const std::string separator = first ? "" : ends_line_ ? "\n" : "\n\n";
    ends_line_ = text.ends_with('\n');
    return separator + text;
  }

 private:
  data::Vocabulary vocabulary_;
  Output* out_;
  OutputFolder* folder_;
  bool ends_line_ = false;
};

class FastaWriter final : public TextWriter {
 public:
  using TextWriter::TextWriter;

 private:
  std::string ending() const override { return ".fasta"; }
  std::string in_own_file(const GeneratedSequence& sequence, const std::string& text) override {
    return data::format_fasta(describe(sequence), text);
  }
  std::string in_common_file(const GeneratedSequence& sequence, const std::string& text) override {
    return in_own_file(sequence, text);
  }
};

class PngWriter final : public SampleWriter {
 public:
  PngWriter(const data::ImageShape& shape, Output* out, OutputFolder* folder)
      : shape_(shape), out_(out), folder_(folder) {}

  void write(const GeneratedSequence& sequence) override {
    spdlog::info("{}", describe(sequence));
    const std::string picture = data::encode_png(shape_, sequence.tokens);
    if (folder_ != nullptr) {
      folder_->write(name_of(sequence) + ".png", picture);
    } else {
      out_->write(picture);
    }
  }
  void finish() override {
    if (out_ != nullptr) out_->finish();
  }

 private:
  data::ImageShape shape_;
  Output* out_;
  OutputFolder* folder_;
};

}  // namespace

std::string sample_format(const ModelFolder& folder) {
  if (folder.data.format != "auto") return folder.data.format;
  const std::string& name = folder.vocabulary.name();
  return name == "protein" || name == "dna" || name == "rna" ? "fasta" : "text";
}

std::optional<data::ImageShape> sample_shape(const ModelFolder& folder) {
  if (folder.data.image_shape.empty() || folder.vocabulary != data::Vocabulary::pixels()) return std::nullopt;
  return data::parse_image_shape(folder.data.image_shape);
}

bool is_sample_folder(const std::string& path) {
  std::error_code ignored;
  return path.ends_with('/') || std::filesystem::is_directory(path, ignored);
}

struct SamplePlace::Places {
  std::optional<Output> out;
  std::optional<OutputFolder> folder;
};

SamplePlace::SamplePlace(const std::string& path) : path_(path), places_(std::make_unique<Places>()) {
  if (is_sample_folder(path)) {
    places_->folder.emplace(path);
  } else {
    places_->out.emplace(path);
  }
}
SamplePlace::~SamplePlace() = default;

std::unique_ptr<SampleWriter> SamplePlace::writer(const ModelFolder& folder, int64_t count) {
  const std::optional<data::ImageShape> shape = sample_shape(folder);
  const bool to_standard_output = path_.empty() || path_ == "-";
  if (shape && count > 1 && !places_->folder) {
    check<UsageError>(!to_standard_output,
                      "{} images do not fit on standard output: give a folder for them with -o DIR", count);
    places_->out.reset();
    places_->folder.emplace(path_);
  }
  check<UsageError>(!shape || !to_standard_output || isatty(STDOUT_FILENO) == 0,
                    "a PNG picture is nothing for a terminal: give a file with -o FILE.png");
  Output* out = places_->out ? &*places_->out : nullptr;
  OutputFolder* into = places_->folder ? &*places_->folder : nullptr;
  if (shape) return std::make_unique<PngWriter>(*shape, out, into);
  if (sample_format(folder) == "fasta") return std::make_unique<FastaWriter>(folder.vocabulary, out, into);
  return std::make_unique<TextWriter>(folder.vocabulary, out, into);
}

}  // namespace performer::cli
