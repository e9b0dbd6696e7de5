// SPDX-License-Identifier: Apache-2.0
// Reads sequences of tokens from files of any format, one after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "performer/data/byte_source.h"
#include "performer/data/config.h"
#include "performer/data/vocabulary.h"

namespace performer::data {

// The shape of an image; its tokens lie row by row, the channels of a pixel side by side.
struct ImageShape {
  int64_t height = 0, width = 0, channels = 0;  // channels: 1 (greyscale) or 3 (red, green, blue)

  int64_t tokens() const { return height * width * channels; }
  bool operator==(const ImageShape&) const = default;
};
std::string to_text(const ImageShape& shape);  // "64x64x3"
// Reads "64x64x3". Throws UsageError naming data.image_shape.
ImageShape parse_image_shape(const std::string& text);

// What a reader changed or met, by a stated rule each (docs/formats.md): how often, and what, in words that
// follow the number, such as {3, "gaps dropped"}. Nothing is changed silently.
struct ReportLine {
  int64_t count = 0;
  std::string text;
  bool operator==(const ReportLine&) const = default;
};

struct ReadReport {
  int64_t records = 0, tokens = 0;
  std::string records_name = "sequences", tokens_name = "tokens";  // what messages call them, in the plural
  std::vector<ReportLine> lines;                                   // counts above 0 only

  void add(int64_t count, const std::string& text);  // adds to the line of that text; 0 adds nothing
  ReadReport& operator+=(const ReadReport& other);
};
// "3 gaps dropped; 1 J read as X"; empty when nothing was changed.
std::string changes(const ReadReport& report);
// "20 sequences, 4000 residues; 3 gaps dropped".
std::string summary(const ReadReport& report);

// Longer sequences and documents are refused: 2^30 tokens, which take 2 GiB, and a document's text 1 GiB
// more.
inline constexpr int64_t kLongestRecord = int64_t{1} << 30;

struct Record {
  std::string id;             // without white space; may be empty
  std::string header;         // a FASTA header line without '>', or where else the record comes from
  std::vector<Token> tokens;  // ids of symbols, at least one
  int64_t number = 0;         // from 1, within what the reader was opened for
  int64_t line = 0;           // of its beginning in its file, from 1; 0: no line (images)
};

class Reader {
 public:
  virtual ~Reader() = default;
  // Reads the next record; false at the end. Throws InputError naming file, place, what was expected and what
  // was found.
  virtual bool next(Record& record) = 0;
  virtual ReadReport report() const = 0;  // of what was read so far
  virtual const Vocabulary& vocabulary() const = 0;
  virtual std::string format() const = 0;  // fasta, text or image
  // The shape that all images have, from the first one on; nothing for other formats.
  virtual std::optional<ImageShape> image_shape() const { return std::nullopt; }
};

// Told while files are read: how many bytes of theirs (packed ones as they are) were taken, of how many; 0
// when that is not known because one of them can be read only once.
using ReadProgress = std::function<void(int64_t done, int64_t total)>;

// A reader for a file, "-" for standard input, or a folder, whose files are read in the order of their names
// (folders in it too; names that begin with '.' are passed over). Files may be plain, gzip or zstd. Of
// `config` format, vocabulary, documents, image_shape and image_fit matter. With `vocabulary` (of a model)
// that one is used, whatever config.vocabulary says. What is automatic is decided like this:
//
// - A vocabulary that is given decides the format: protein, dna and rna are FASTA, bytes are text, pixels are
//   images. One from a file, or none, leaves the format to the content:
// - PNG, JPEG and tar begin with their signatures and are images, as are files named *.u8 (raw bytes). A file
//   whose first line, beside blank ones and comments (';'), begins with '>' is FASTA. What is another format
//   of sequences or structures, packed in a way that is not known here, or binary (foreign.h) is an error.
//   All else is text.
// - FASTA then is protein, text is bytes, images are pixels.
//
// Throws InputError when the path cannot be read, is empty, or is not what was asked for, saying what it is
// where that can be told; UsageError for a vocabulary that the format cannot use.
std::unique_ptr<Reader> open_reader(const std::string& path, const DataConfig& config,
                                    const std::optional<Vocabulary>& vocabulary = std::nullopt);
// One reader for several of them, which have one format, one vocabulary and, for images, one shape. In a
// folder of images other files are passed over and counted, and so are empty files in any folder. Records are
// numbered through. All files are checked first, as check_inputs() says.
std::unique_ptr<Reader> open_reader(const std::vector<std::string>& paths, const DataConfig& config,
                                    const std::optional<Vocabulary>& vocabulary = std::nullopt,
                                    const ReadProgress& progress = {});
// Throws what open_reader() would throw for any of the paths, before one is read: a path that does not exist,
// an empty file, one of another format. Looks into files that can be read twice (inputs.h) only, and at their
// first bytes.
void check_inputs(const std::vector<std::string>& paths, const DataConfig& config,
                  const std::optional<Vocabulary>& vocabulary = std::nullopt);
// A reader for bytes from any source; `name` is used in messages, and its ending tells raw images.
std::unique_ptr<Reader> open_reader(std::unique_ptr<ByteSource> source, const std::string& name,
                                    const DataConfig& config,
                                    const std::optional<Vocabulary>& vocabulary = std::nullopt);

}  // namespace performer::data
