// SPDX-License-Identifier: Apache-2.0
// How generated sequences are written: FASTA, text or PNG, as the data that a model was trained on.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "performer/data/reader.h"
#include "performer/infer/generate.h"
#include "performer/models/folder.h"

namespace performer::cli {

// fasta, text or image: what the sequences of a model are written as. Where the folder records no format,
// the vocabulary decides: protein, dna and rna are FASTA, anything else is text.
std::string sample_format(const ModelFolder& folder);
// The shape of a model's images; nothing for other models.
std::optional<data::ImageShape> sample_shape(const ModelFolder& folder);

class SampleWriter {
 public:
  virtual ~SampleWriter() = default;
  virtual void write(const GeneratedSequence& sequence) = 0;
  virtual void finish() {}
};

// Whether a path given with -o stands for a folder: it ends with '/' or is one.
bool is_sample_folder(const std::string& path);

// A place for samples, opened before the model is read so that an unwritable one is found at once. A path
// that ends with '/' or is a folder stands for a folder with one file a sequence; so does any other path when
// several images are written.
class SamplePlace {
 public:
  explicit SamplePlace(const std::string& path);
  ~SamplePlace();
  SamplePlace(const SamplePlace&) = delete;
  SamplePlace& operator=(const SamplePlace&) = delete;

  // The writer for `count` samples of a model. Throws UsageError when these have no place: several images on
  // standard output, or a picture on a terminal.
  std::unique_ptr<SampleWriter> writer(const ModelFolder& folder, int64_t count);

 private:
  struct Places;
  std::string path_;
  std::unique_ptr<Places> places_;
};

}  // namespace performer::cli
