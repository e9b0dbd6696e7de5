// SPDX-License-Identifier: Apache-2.0
#include "performer/train/tensorboard.h"

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "performer/base/error.h"

namespace performer::train {
namespace {

std::array<uint32_t, 256> make_crc_table() {
  constexpr uint32_t kPolynomial = 0x82f63b78;  // bit-reversed 0x1edc6f41
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    table[byte] = crc;
  }
  return table;
}

// TFRecord stores CRCs rotated and shifted, because a CRC of data that holds CRCs is weak.
uint32_t masked_crc(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8u;
}

template <class T>
void append_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

// Protobuf wire format: a key is (field number << 3) | wire type.
enum WireType { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

void append_key(std::string& out, int field, WireType type) {
  append_varint(out, static_cast<uint64_t>(field << 3 | type));
}

void append_bytes(std::string& out, int field, std::string_view bytes) {
  append_key(out, field, kBytes);
  append_varint(out, bytes.size());
  out.append(bytes);
}

// Field numbers of tensorflow/core/util/event.proto and summary.proto.
enum EventField { kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7 };
enum SummaryField { kValue = 1, kTag = 1, kSimpleValue = 2 };
enum SessionLogField { kStatus = 1, kStatusStart = 1 };

std::string event_header(double wall_time, int64_t step) {
  std::string event;
  append_key(event, kWallTime, kFixed64);
  append_little_endian(event, std::bit_cast<uint64_t>(wall_time));
  append_key(event, kStep, kVarint);
  append_varint(event, static_cast<uint64_t>(step));
  return event;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const std::array<uint32_t, 256> table = make_crc_table();
  uint32_t crc = 0xffffffff;
  for (const unsigned char byte : bytes) crc = table[(crc ^ byte) & 0xff] ^ (crc >> 8);
  return ~crc;
}

std::string tfrecord_frame(std::string_view data) {
  std::string frame;
  append_little_endian(frame, static_cast<uint64_t>(data.size()));
  append_little_endian(frame, masked_crc(frame));
  frame.append(data);
  append_little_endian(frame, masked_crc(data));
  return frame;
}

std::string event_file_version(double wall_time) {
  std::string event = event_header(wall_time, 0);
  append_bytes(event, kFileVersion, "brain.Event:2");
  return event;
}

std::string event_start(double wall_time, int64_t step) {
  std::string log;
  append_key(log, kStatus, kVarint);
  append_varint(log, kStatusStart);
  std::string event = event_header(wall_time, step);
  append_bytes(event, kSessionLog, log);
  return event;
}

std::string event_scalars(double wall_time, int64_t step,
                          const std::vector<std::pair<std::string, double>>& scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    append_bytes(value, kTag, tag);
    append_key(value, kSimpleValue, kFixed32);
    append_little_endian(value, std::bit_cast<uint32_t>(static_cast<float>(number)));
    append_bytes(summary, kValue, value);
  }
  std::string event = event_header(wall_time, step);
  append_bytes(event, kSummary, summary);
  return event;
}

TensorBoardWriter::TensorBoardWriter(const std::string& directory, int64_t next_step)
    : path_(fmt::format("{}/events.out.tfevents.{:.0f}.{}.performer", directory, now(), next_step)),
      file_(path_, std::ios::binary | std::ios::app) {
  write(event_file_version(now()));
  write(event_start(now(), next_step));
}

void TensorBoardWriter::add(int64_t step, const std::vector<std::pair<std::string, double>>& scalars) {
  write(event_scalars(now(), step, scalars));
}

void TensorBoardWriter::write(const std::string& event) {
  const std::string frame = tfrecord_frame(event);
  file_.write(frame.data(), static_cast<std::streamsize>(frame.size()));
  file_.flush();
  check(file_.good(), "cannot write {}: {}", path_, std::strerror(errno));
}

}  // namespace performer::train
