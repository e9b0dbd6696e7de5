// SPDX-License-Identifier: Apache-2.0
#include "performer/infer/embedding_file.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/numpy.h"
#include "performer/models/safetensors.h"

namespace performer {
namespace {

constexpr int64_t kCopyBytes = int64_t{1} << 20;

int open_partial(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  check(descriptor >= 0, "cannot write {}: {}", path, std::strerror(errno));
  return descriptor;
}

void write_all(int descriptor, const std::string& path, std::string_view bytes, int64_t offset) {
  while (!bytes.empty()) {
    const ssize_t done = ::pwrite(descriptor, bytes.data(), bytes.size(), offset);
    if (done < 0 && errno == EINTR) continue;
    check(done > 0, "cannot write {}: {}", path, std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(done));
    offset += done;
  }
}

int64_t size_of(int descriptor) {
  struct stat status {};
  return ::fstat(descriptor, &status) == 0 ? static_cast<int64_t>(status.st_size) : 0;
}

void cut(int descriptor, const std::string& path, int64_t size) {
  check(::ftruncate(descriptor, size) == 0, "cannot cut {}: {}", path, std::strerror(errno));
}

std::string index_line(const EmbeddedSequence& sequence) {
  return fmt::format("{}\t{}\t{}\t{}\n", sequence.first_row, printable(sequence.id), sequence.length,
                     sequence.rows);
}
constexpr const char* kIndexHeader = "row\tid\tlength\trows\n";

std::vector<std::string_view> split(std::string_view text, char mark) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0;;) {
    const size_t end = text.find(mark, begin);
    parts.push_back(text.substr(begin, end == std::string_view::npos ? end : end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

// A line of the index; false for one that is damaged.
bool parse_line(std::string_view line, EmbeddedSequence& sequence) {
  const std::vector<std::string_view> cells = split(line, '\t');
  if (cells.size() != 4) return false;
  const auto number = [](std::string_view text, int64_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() && value >= 0;
  };
  sequence.id = std::string(cells[1]);
  return number(cells[0], sequence.first_row) && number(cells[2], sequence.length) &&
         number(cells[3], sequence.rows);
}

// One CSV field: quoted where it must be (RFC 4180).
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char letter : text) quoted += letter == '"' ? "\"\"" : std::string(1, letter);
  return quoted + "\"";
}

const char* type_name(at::ScalarType type) {
  return type == at::kHalf ? "float16" : type == at::kBFloat16 ? "bfloat16" : "float32";
}

}  // namespace

const std::vector<std::string>& embedding_formats() {
  static const std::vector<std::string> all = {"safetensors", "npy", "npz", "csv"};
  return all;
}

std::string embedding_format(const std::string& path) {
  const std::string ending = std::filesystem::path(path).extension().string();
  for (const std::string& format : embedding_formats()) {
    if (ending == "." + format) return format;
  }
  throw UsageError(fmt::format("-o {} must end in .{}, which says what is written, or give --format", path,
                               fmt::join(embedding_formats(), ", .")));
}

void validate(const EmbeddingLayout& layout) {
  const bool numpy = layout.format == "npy" || layout.format == "npz";
  check<UsageError>(
      !numpy || layout.type != at::kBFloat16,
      "NumPy has no bfloat16, so .{} cannot hold it: write .safetensors, or take float16 or float32",
      layout.format);
}

EmbeddingFile::EmbeddingFile(const std::string& path, const EmbeddingLayout& layout,
                             const std::map<std::string, std::string>& facts, bool resume)
    : path_(path), layout_(layout), facts_(facts) {
  validate(layout);
  facts_["layers"] = fmt::format("{}", fmt::join(layout.layers, ","));
  facts_["dtype"] = type_name(layout.type);
  facts_["width"] = std::to_string(layout.width);
  values_.number = open_partial(partial());
  check(::flock(values_, LOCK_EX | LOCK_NB) == 0, "{} is being written by another process", partial());
  index_.number = open_partial(partial_index());
  if (resume) read_partial();
  cut(values_, partial(), rows() * row_bytes());
  // The index is written anew: what was damaged at its end is gone.
  cut(index_, partial_index(), 0);
  write_all(index_, partial_index(), head(), 0);
  flushed_ = 0;
  flush();
}

EmbeddingFile::~EmbeddingFile() {
  if (!done_ && flushed_ == 0) {
    ::unlink(partial().c_str());
    ::unlink(partial_index().c_str());
  }
}

EmbeddingFile::Descriptor::~Descriptor() {
  if (number >= 0) ::close(number);
}

std::string EmbeddingFile::head() const {
  std::string line = "# unfinished embeddings";
  for (const auto& [name, value] : facts_) line += fmt::format("\t{}={}", name, value);
  return line + "\n";
}

void EmbeddingFile::read_partial() {
  if (size_of(index_) == 0) return;
  const std::string text = read_file(partial_index());
  std::vector<std::string_view> lines = split(text, '\n');
  lines.pop_back();  // what follows the last line end: nothing, or a line that was not finished
  if (lines.empty()) return;
  const std::vector<std::string_view> found = split(lines[0], '\t');
  for (const auto& [name, value] : facts_) {
    const auto other = std::ranges::find_if(
        found, [&, name = name](std::string_view part) { return part.starts_with(name + "="); });
    const std::string before = other == found.end() ? "" : std::string(other->substr(name.size() + 1));
    check<UsageError>(
        before == value,
        "{} was begun with {} = {}, not {}: give what it was begun with, or leave out --resume to begin "
        "again",
        partial(), name, before.empty() ? "nothing known" : before, value);
  }
  const int64_t stored = size_of(values_) / row_bytes();
  for (size_t i = 1; i < lines.size(); ++i) {
    EmbeddedSequence sequence;
    const bool sound = parse_line(lines[i], sequence) && sequence.first_row == rows();
    if (!sound || sequence.first_row + sequence.rows > stored) break;
    sequences_.push_back(sequence);
  }
}

int64_t EmbeddingFile::row_bytes() const {
  return std::ssize(layout_.layers) * layout_.width * static_cast<int64_t>(at::elementSize(layout_.type));
}

int64_t EmbeddingFile::rows() const {
  return sequences_.empty() ? 0 : sequences_.back().first_row + sequences_.back().rows;
}

void EmbeddingFile::begin(const data::Record& record, int64_t rows_of_it) {
  open_ = {record.id, std::ssize(record.tokens), rows(), rows_of_it};
}

void EmbeddingFile::write(int64_t first, int64_t place, const at::Tensor& values) {
  const at::Tensor stored = values.to(layout_.type).contiguous();
  if (layout_.type == at::kHalf) {
    check(stored.isinf().logical_and(values.isfinite()).any().item<bool>() == false,
          "'{}' has values beyond 65504, the largest of float16: store float32 or bfloat16", open_.id);
  }
  const int64_t bytes = layout_.width * static_cast<int64_t>(stored.element_size());
  const char* data = static_cast<const char*>(stored.data_ptr());
  const int64_t begin = (open_.first_row + first) * row_bytes() + place * bytes;
  if (layout_.layers.size() == 1) {
    write_all(values_, partial(), {data, stored.nbytes()}, begin);
    return;
  }
  for (int64_t row = 0; row < stored.size(0); ++row) {
    write_all(values_, partial(), {data + row * bytes, static_cast<size_t>(bytes)},
              begin + row * row_bytes());
  }
}

void EmbeddingFile::end() {
  sequences_.push_back(open_);
}

void EmbeddingFile::flush() {
  check(::fdatasync(values_) == 0, "cannot write {}: {}", partial(), std::strerror(errno));
  std::string lines;
  for (; flushed_ < sequences_.size(); ++flushed_) lines += index_line(sequences_[flushed_]);
  write_all(index_, partial_index(), lines, size_of(index_));
}

template <class Sink>
void EmbeddingFile::copy_values(const Sink& sink) const {
  std::string piece;
  const int64_t total = rows() * row_bytes();
  for (int64_t offset = 0; offset < total;) {
    piece.resize(static_cast<size_t>(std::min(kCopyBytes, total - offset)));
    const ssize_t done = ::pread(values_, piece.data(), piece.size(), offset);
    if (done < 0 && errno == EINTR) continue;
    check(done > 0, "cannot read {}: {}", partial(), done == 0 ? "it ends too early" : std::strerror(errno));
    sink(std::string_view(piece).substr(0, static_cast<size_t>(done)));
    offset += done;
  }
}

void EmbeddingFile::write_array() {
  std::vector<int64_t> shape = {rows(), layout_.width};
  if (layout_.layers.size() > 1) shape.insert(shape.begin() + 1, std::ssize(layout_.layers));
  AtomicFile out(path_);
  if (layout_.format == "safetensors") {
    out.write(safetensors_header("embeddings", layout_.type, shape, facts_));
    copy_values([&](std::string_view bytes) { out.write(bytes); });
    out.commit();
    return;
  }
  const std::string header = npy_header(layout_.type == at::kHalf ? "<f2" : "<f4", shape);
  if (layout_.format == "npy") {
    out.write(header);
    copy_values([&](std::string_view bytes) { out.write(bytes); });
    out.commit();
    return;
  }
  ZipWriter zip(out);
  zip.add("embeddings.npy", [&](const ZipWriter::Bytes& bytes) {
    bytes(header);
    copy_values(bytes);
  });
  std::vector<std::string> ids;
  for (const EmbeddedSequence& sequence : sequences_) ids.push_back(sequence.id);
  const NumpyTexts texts = numpy_texts(ids);
  const std::vector<int64_t> count = {std::ssize(ids)};
  zip.add("ids.npy",
          [&](const ZipWriter::Bytes& bytes) { bytes(npy_header(texts.type, count) + texts.values); });
  const auto add_numbers = [&](const char* name, int64_t EmbeddedSequence::*member) {
    std::string values;
    for (const EmbeddedSequence& sequence : sequences_) {
      values.append(reinterpret_cast<const char*>(&(sequence.*member)), sizeof(int64_t));
    }
    zip.add(name, [&](const ZipWriter::Bytes& bytes) { bytes(npy_header("<i8", count) + values); });
  };
  add_numbers("lengths.npy", &EmbeddedSequence::length);
  add_numbers("first_rows.npy", &EmbeddedSequence::first_row);
  zip.finish();
  out.commit();
}

void EmbeddingFile::write_csv() {
  AtomicFile out(path_);
  const bool several = layout_.layers.size() > 1;
  std::string line =
      fmt::format("id,length{}{}", layout_.per_token ? ",position" : "", several ? ",layer" : "");
  for (int64_t i = 0; i < layout_.width; ++i) line += fmt::format(",d{}", i);
  out.write(line + "\n");
  at::Tensor row = at::empty({std::ssize(layout_.layers), layout_.width}, layout_.type);
  for (const EmbeddedSequence& sequence : sequences_) {
    for (int64_t i = 0; i < sequence.rows; ++i) {
      const auto done =
          ::pread(values_, row.data_ptr(), row.nbytes(), (sequence.first_row + i) * row_bytes());
      check(done == static_cast<ssize_t>(row.nbytes()), "cannot read {}: {}", partial(),
            std::strerror(errno));
      const at::Tensor values = row.to(at::kFloat);
      line.clear();
      for (int64_t place = 0; place < values.size(0); ++place) {
        line += fmt::format("{},{}", csv_field(sequence.id), sequence.length);
        if (layout_.per_token) line += fmt::format(",{}", i + 1);
        if (several) line += fmt::format(",{}", layout_.layers[place]);
        const float* numbers = values[place].data_ptr<float>();
        for (int64_t k = 0; k < layout_.width; ++k) line += fmt::format(",{}", numbers[k]);
        line += "\n";
      }
      out.write(line);
    }
  }
  out.commit();
}

void EmbeddingFile::finish() {
  flush();
  if (layout_.format == "csv") {
    write_csv();
  } else {
    AtomicFile index(path_ + ".tsv");
    index.write(kIndexHeader);
    for (const EmbeddedSequence& sequence : sequences_) index.write(index_line(sequence));
    write_array();
    index.commit();
  }
  done_ = true;
  ::unlink(partial().c_str());
  ::unlink(partial_index().c_str());
}

}  // namespace performer
