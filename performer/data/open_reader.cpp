// SPDX-License-Identifier: Apache-2.0
// From paths to readers: which format a file has, and one reader for many files.
#include <algorithm>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/data/detect.h"
#include "performer/data/fasta/fasta.h"
#include "performer/data/image/images.h"
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
          "file named *.u8",
          name));
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
  return format_of(content);
}

// A file to read, and whether it was named or found in a folder.
struct Place {
  std::string path;
  bool found = false;
};

// The files of a folder and of those in it, by name; what begins with '.' is hidden.
std::vector<Place> files_of(const std::string& folder) {
  namespace fs = std::filesystem;
  std::vector<Place> places;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const bool hidden = entry->path().filename().native().starts_with('.');
    if (hidden && entry->is_directory()) entry.disable_recursion_pending();
    if (!hidden && entry->is_regular_file()) places.push_back({entry->path().string(), true});
  }
  check<InputError>(!error, "cannot read the folder {}: {}", folder, error.message());
  check<InputError>(!places.empty(), "the folder {} has no files", folder);
  std::ranges::sort(places, {}, &Place::path);
  return places;
}

// Reads files one after the other, all in one format.
class FilesReader final : public Reader {
 public:
  FilesReader(const std::vector<std::string>& paths, Request request);

  bool next(Record& record) override;
  ReadReport report() const override;
  const Vocabulary& vocabulary() const override { return reader_->vocabulary(); }
  std::string format() const override { return request_.format; }
  std::optional<ImageShape> image_shape() const override { return reader_->image_shape(); }

 private:
  void choose_format();  // where it is automatic
  // Opens the next file that has something to read; false when there is none.
  bool open_next();

  std::vector<Place> places_;
  Request request_;
  size_t at_ = 0;                   // of the file to open next
  std::unique_ptr<Reader> reader_;  // of the file before; never empty
  ReadReport before_;               // of the files before that one, and of files passed over
  int64_t records_ = 0;
};

FilesReader::FilesReader(const std::vector<std::string>& paths, Request request)
    : request_(std::move(request)) {
  for (const std::string& path : paths) {
    std::error_code ignored;
    if (path != "-" && std::filesystem::is_directory(path, ignored)) {
      const std::vector<Place> files = files_of(path);
      places_.insert(places_.end(), files.begin(), files.end());
    } else {
      places_.push_back({path, false});
    }
  }
  if (request_.format == "auto" && places_.size() > 1) choose_format();
  check<InputError>(open_next(), "{} has no file to read as {}: all of them are empty or something else",
                    paths.front(), request_.format);
}

// Looks into all files but those that can be read only once, such as standard input and pipes.
void FilesReader::choose_format() {
  const Place* decided_by = nullptr;
  for (const Place& place : places_) {
    std::error_code ignored;
    std::filesystem::file_status status = std::filesystem::status(place.path, ignored);
    const bool once = place.path == "-" || (exists(status) && !is_regular_file(status));
    if (once) continue;
    const auto source = unpacked(open_bytes(place.path), place.path);
    const Content content = detect(*source, place.path);
    if (content == Content::empty) continue;
    const std::string format = format_of(content);
    if (decided_by == nullptr || format == request_.format) {
      request_.format = format;
      decided_by = &place;
      continue;
    }
    // A folder of images may hold a note about them; it is passed over, and counted.
    const bool images = format == "image" || request_.format == "image";
    const bool note = place.found && decided_by->found && images;
    check<InputError>(
        note,
        "{} is {}, but {} is {}: all files of a corpus have one format; set data.format if that "
        "is a mistake",
        decided_by->path, request_.format, place.path, format);
    if (format == "image") decided_by = &place;
    request_.format = "image";
  }
}

bool FilesReader::open_next() {
  for (; at_ < places_.size(); ++at_) {
    const Place& place = places_[at_];
    const std::string name = source_name(place.path);
    auto source = unpacked(open_bytes(place.path), name);
    if (request_.format == "auto") request_.format = decided_format(*source, name, request_);
    if (place.found) {
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

std::unique_ptr<Reader> open_reader(const std::vector<std::string>& paths, const DataConfig& config,
                                    const std::optional<Vocabulary>& vocabulary) {
  check<UsageError>(!paths.empty(), "no file is given: expected at least one");
  return std::make_unique<FilesReader>(paths, make_request(config, vocabulary));
}

std::unique_ptr<Reader> open_reader(const std::string& path, const DataConfig& config,
                                    const std::optional<Vocabulary>& vocabulary) {
  return open_reader(std::vector<std::string>{path}, config, vocabulary);
}

}  // namespace performer::data
