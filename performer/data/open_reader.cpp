// SPDX-License-Identifier: Apache-2.0
// From paths to readers: which format a file has, and one reader for many files.
#include <algorithm>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/data/detect.h"
#include "performer/data/fasta/fasta.h"
#include "performer/data/foreign.h"
#include "performer/data/image/images.h"
#include "performer/data/inputs.h"
#include "performer/data/reader.h"
#include "performer/data/record_id.h"
#include "performer/data/text/text.h"

namespace performer::data {
namespace {

// What a configuration and a model say about all files of a corpus.
struct Request {
  std::string format;                    // or auto
  std::optional<Vocabulary> vocabulary;  // that of the model or of the configuration, if any
  Documents documents;
  std::shared_ptr<ImageRule> rule;
};

// The format that a vocabulary belongs to; auto for one of a file.
std::string format_for(const Vocabulary& vocabulary) {
  if (vocabulary == Vocabulary::bytes()) return "text";
  if (vocabulary == Vocabulary::pixels()) return "image";
  for (const auto& letters : {Vocabulary::protein(), Vocabulary::dna(), Vocabulary::rna()}) {
    if (vocabulary == letters) return "fasta";
  }
  return "auto";
}

Request make_request(const DataConfig& config, const std::optional<Vocabulary>& vocabulary) {
  Request request{config.format, vocabulary, documents_from_name(config.documents),
                  std::make_shared<ImageRule>(config.image_shape, config.image_fit)};
  if (!vocabulary && config.vocabulary != "auto") request.vocabulary = Vocabulary::named(config.vocabulary);
  if (request.format == "auto" && request.vocabulary) request.format = format_for(*request.vocabulary);
  return request;
}

std::unique_ptr<Reader> image_reader(std::unique_ptr<PeekedSource> source, const std::string& name,
                                     const Request& request) {
  check<UsageError>(
      !request.vocabulary || *request.vocabulary == Vocabulary::pixels(),
      "the vocabulary {} cannot be read from images, which consist of pixels: leave data.vocabulary "
      "at auto, or choose another data.format",
      request.vocabulary ? request.vocabulary->name() : "");
  switch (detect(*source, name)) {
    case Content::picture:
      return std::make_unique<PictureReader>(std::move(source), name, request.rule);
    case Content::tar:
      return std::make_unique<TarImageReader>(std::move(source), name, request.rule);
    case Content::raw_images:
      return std::make_unique<RawImageReader>(std::move(source), name, request.rule);
    case Content::empty:
      throw InputError(fmt::format("{} is empty: expected images", name));
    default:
      throw InputError(fmt::format(
          "{} holds no images: expected a PNG or JPEG picture, a tar archive of them, or raw bytes in a "
          "file named *.u8{}",
          name, looks_like(identify(source->peek(kLook)))));
  }
}

// A reader for data of which the format is known.
std::unique_ptr<Reader> make_reader(std::unique_ptr<PeekedSource> source, const std::string& name,
                                    const std::string& format, const Request& request) {
  if (format == "image") return image_reader(std::move(source), name, request);
  if (format == "fasta") {
    return std::make_unique<FastaReader>(std::move(source), name,
                                         request.vocabulary.value_or(Vocabulary::protein()));
  }
  return std::make_unique<TextReader>(std::move(source), name, request.documents,
                                      request.vocabulary.value_or(Vocabulary::bytes()));
}

std::unique_ptr<PeekedSource> unpacked(std::unique_ptr<ByteSource> source, const std::string& name) {
  return std::make_unique<PeekedSource>(unpack(std::move(source), name));
}

// The format of data, by their content where that decides.
std::string decided_format(PeekedSource& source, const std::string& name, const Request& request) {
  if (request.format != "auto") return request.format;
  const Content content = detect(source, name);
  check<InputError>(content != Content::empty, "{} is empty: expected FASTA, text or images", name);
  if (content == Content::foreign) throw_foreign(source, name);
  return format_of(content);
}

// What is looked at of a file before any is read.
struct Look {
  const InputFile* file = nullptr;
  std::unique_ptr<PeekedSource> source;
  Content content = Content::empty;
};

Look look_at(const InputFile& file) {
  Look look{&file, unpacked(open_bytes(file.path), file.path)};
  look.content = detect(*look.source, file.path);
  return look;
}

// Whether a file can be looked at without taking anything from who reads it.
bool can_be_looked_at(const InputFile& file) {
  return can_be_read_twice(file.path);
}

// Where the format is automatic: that of all files that can be looked at.
void choose_format(const std::vector<InputFile>& files, Request& request) {
  const InputFile* decided_by = nullptr;
  const InputFile* foreign = nullptr;  // the first in a folder, which a folder of images may hold
  for (const InputFile& file : files) {
    if (!can_be_looked_at(file)) continue;
    const Look look = look_at(file);
    if (look.content == Content::empty) continue;
    if (look.content == Content::foreign) {
      if (!file.found) throw_foreign(*look.source, file.path);
      if (foreign == nullptr) foreign = &file;
      continue;
    }
    const std::string format = format_of(look.content);
    if (decided_by == nullptr || format == request.format) {
      request.format = format;
      decided_by = &file;
      continue;
    }
    // A folder of images may hold a note about them; it is passed over, and counted.
    const bool images = format == "image" || request.format == "image";
    check<InputError>(
        file.found && decided_by->found && images,
        "{} is {}, but {} is {}: all files of a corpus have one format; set data.format if that "
        "is a mistake",
        decided_by->path, request.format, file.path, format);
    if (format == "image") decided_by = &file;
    request.format = "image";
  }
  if (foreign != nullptr && request.format != "image")
    throw_foreign(*look_at(*foreign).source, foreign->path);
}

// Throws for a file that is empty or cannot be of the format, before any file is read.
void check_file(const InputFile& file, const Request& request) {
  Look look = look_at(file);
  const bool passed_over = file.found && (look.content == Content::empty ||
                                          (request.format == "image" && format_of(look.content) != "image"));
  if (passed_over) return;
  const bool image = format_of(look.content) == "image";
  check<InputError>(request.format != "text" || look.content != Content::empty, "{} is empty: expected text",
                    file.path);
  // Opening says what is wrong; images of the right kind may still need a shape that an earlier one gives.
  if (request.format == "fasta" || (request.format == "image" && !image)) {
    make_reader(std::move(look.source), file.path, request.format, request);
  }
}

// The files that paths stand for, all of them checked, and in `request` their format where it can be told.
std::vector<InputFile> checked_inputs(const std::vector<std::string>& paths, Request& request) {
  check<UsageError>(!paths.empty(), "no file is given: expected at least one");
  std::vector<InputFile> files = list_inputs(paths);
  if (request.format == "auto") choose_format(files, request);
  if (request.format == "auto") return files;
  for (const InputFile& file : files) {
    if (can_be_looked_at(file)) check_file(file, request);
  }
  return files;
}

// How far the reading of several files is.
class Watch {
 public:
  explicit Watch(ReadProgress progress) : progress_(std::move(progress)) {}

  void begin(const std::vector<InputFile>& files) {
    for (const InputFile& file : files) {
      std::error_code error;
      const uintmax_t size = can_be_read_twice(file.path) ? std::filesystem::file_size(file.path, error) : 0;
      if (error || !can_be_read_twice(file.path)) {
        total_ = 0;
        return;
      }
      total_ += static_cast<int64_t>(size);
    }
  }
  void add(size_t bytes) {
    done_ += static_cast<int64_t>(bytes);
    if (progress_) progress_(done_, total_);
  }

 private:
  ReadProgress progress_;
  int64_t done_ = 0, total_ = 0;
};

// A source whose bytes are counted; the watch outlives it.
class WatchedSource final : public ByteSource {
 public:
  WatchedSource(std::unique_ptr<ByteSource> source, Watch& watch)
      : source_(std::move(source)), watch_(watch) {}
  size_t read(char* buffer, size_t size) override {
    const size_t count = source_->read(buffer, size);
    watch_.add(count);
    return count;
  }

 private:
  std::unique_ptr<ByteSource> source_;
  Watch& watch_;
};

// Reads files one after the other, all in one format.
class FilesReader final : public Reader {
 public:
  FilesReader(const std::vector<std::string>& paths, Request request, const ReadProgress& progress);

  bool next(Record& record) override;
  ReadReport report() const override;
  const Vocabulary& vocabulary() const override { return reader_->vocabulary(); }
  std::string format() const override { return request_.format; }
  std::optional<ImageShape> image_shape() const override { return reader_->image_shape(); }

 private:
  // Opens the next file that has something to read; false when there is none.
  bool open_next();

  Request request_;
  std::vector<InputFile> files_;
  Watch watch_;                     // before the reader, whose source it watches
  size_t at_ = 0;                   // of the file to open next
  std::unique_ptr<Reader> reader_;  // of the file before; never empty
  ReadReport before_;               // of the files before that one, and of files passed over
  int64_t records_ = 0;
};

FilesReader::FilesReader(const std::vector<std::string>& paths, Request request, const ReadProgress& progress)
    : request_(std::move(request)), files_(checked_inputs(paths, request_)), watch_(progress) {
  watch_.begin(files_);
  check<InputError>(open_next(), "{} has no file to read as {}: all of them are empty or something else",
                    paths.front(), request_.format);
}

bool FilesReader::open_next() {
  for (; at_ < files_.size(); ++at_) {
    const InputFile& file = files_[at_];
    const std::string name = source_name(file.path);
    auto source = unpacked(std::make_unique<WatchedSource>(open_bytes(file.path), watch_), name);
    if (request_.format == "auto") request_.format = decided_format(*source, name, request_);
    if (file.found) {
      const Content content = detect(*source, name);
      if (content == Content::empty) {
        before_.add(1, "empty files passed over");
        continue;
      }
      if (request_.format == "image" && format_of(content) != "image") {
        before_.add(1, "files passed over, which are no images");
        continue;
      }
    }
    auto reader = make_reader(std::move(source), name, request_.format, request_);
    if (reader_ != nullptr) before_ += reader_->report();
    reader_ = std::move(reader);
    ++at_;
    return true;
  }
  return false;
}

bool FilesReader::next(Record& record) {
  while (!reader_->next(record)) {
    if (!open_next()) return false;
  }
  record.number = ++records_;
  return true;
}

ReadReport FilesReader::report() const {
  ReadReport report = before_;
  report += reader_->report();
  return report;
}

}  // namespace

std::unique_ptr<Reader> open_reader(std::unique_ptr<ByteSource> source, const std::string& name,
                                    const DataConfig& config, const std::optional<Vocabulary>& vocabulary) {
  const Request request = make_request(config, vocabulary);
  auto peeked = unpacked(std::move(source), name);
  const std::string format = decided_format(*peeked, name, request);
  return make_reader(std::move(peeked), name, format, request);
}

void check_inputs(const std::vector<std::string>& paths, const DataConfig& config,
                  const std::optional<Vocabulary>& vocabulary) {
  Request request = make_request(config, vocabulary);
  checked_inputs(paths, request);
}

std::unique_ptr<Reader> open_reader(const std::vector<std::string>& paths, const DataConfig& config,
                                    const std::optional<Vocabulary>& vocabulary,
                                    const ReadProgress& progress) {
  return std::make_unique<FilesReader>(paths, make_request(config, vocabulary), progress);
}

std::unique_ptr<Reader> open_reader(const std::string& path, const DataConfig& config,
                                    const std::optional<Vocabulary>& vocabulary) {
  return open_reader(std::vector<std::string>{path}, config, vocabulary);
}

}  // namespace performer::data
