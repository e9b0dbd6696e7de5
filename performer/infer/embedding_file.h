// SPDX-License-Identifier: Apache-2.0
// Where embeddings are written: one array for all sequences, and an index that says which rows are whose.
//
// While they come, values lie in OUT.partial and the index of finished sequences in OUT.partial.tsv; finish()
// makes OUT and OUT.tsv of them. What an interrupted run leaves of them is sound, and the next run can go on
// from there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "performer/infer/embedding_sink.h"

namespace performer {

// safetensors, npy, npz or csv: by the ending of a path. Throws UsageError naming the known ones.
std::string embedding_format(const std::string& path);
const std::vector<std::string>& embedding_formats();

struct EmbeddingLayout {
  std::string format = "safetensors";
  at::ScalarType type = at::kFloat;  // float32, float16 or bfloat16, as stored
  std::vector<int64_t> layers;       // of which the rows are, ascending
  int64_t width = 0;
  bool per_token = false;  // a row a token, not one a sequence
};
// Throws UsageError for a type that the format lacks.
void validate(const EmbeddingLayout& layout);

class EmbeddingFile final : public EmbeddingSink {
  // Closed also where the constructor throws.
  struct Descriptor {
    int number = -1;
    Descriptor() = default;
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor();
    operator int() const { return number; }
  };

 public:
  // `facts` tell runs apart that cannot be continued by each other: the model, the pooling. With `resume`
  // what an interrupted run has finished is kept; without it, it is removed. Throws UsageError when that run
  // had another layout or other facts, naming the first that differs, and Error when a file cannot be opened
  // or another process writes it.
  EmbeddingFile(const std::string& path, const EmbeddingLayout& layout,
                const std::map<std::string, std::string>& facts, bool resume);
  // Without finish() the partial files stay, unless nothing is finished.
  ~EmbeddingFile() override;
  EmbeddingFile(const EmbeddingFile&) = delete;
  EmbeddingFile& operator=(const EmbeddingFile&) = delete;

  const EmbeddingLayout& layout() const { return layout_; }
  // What is finished, in order; of a resumed run at first what the run before it had finished.
  const std::vector<EmbeddedSequence>& sequences() const { return sequences_; }

  const std::vector<int64_t>& layers() const override { return layout_.layers; }
  int64_t width() const override { return layout_.width; }
  std::span<const EmbeddedSequence> finished() const override { return sequences_; }
  void begin(const data::Record& record, int64_t rows) override;
  // Throws Error naming the sequence when float16 cannot hold a value.
  void write(int64_t first, int64_t place, const at::Tensor& values) override;
  void end() override;
  void flush() override;

  // Writes OUT, and OUT.tsv unless it is CSV, and removes the partial files.
  void finish();

 private:
  std::string partial() const { return path_ + ".partial"; }
  std::string partial_index() const { return path_ + ".partial.tsv"; }
  int64_t row_bytes() const;
  int64_t rows() const;
  std::string head() const;  // first line of the partial index
  void read_partial();
  void write_array();
  void write_csv();
  template <class Sink>
  void copy_values(const Sink& sink) const;

  std::string path_;
  EmbeddingLayout layout_;
  std::map<std::string, std::string> facts_;
  std::vector<EmbeddedSequence> sequences_;
  size_t flushed_ = 0;  // sequences whose line is in the partial index
  EmbeddedSequence open_;
  Descriptor values_, index_;  // of the partial files
  bool done_ = false;
};

}  // namespace performer
