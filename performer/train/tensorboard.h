// SPDX-License-Identifier: Apache-2.0
// Scalars for TensorBoard: event files of TFRecord frames, each a protobuf message tensorflow.Event written
// by hand (a dozen field numbers do not justify a dependency).
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace performer::train {

uint32_t crc32c(std::string_view bytes);  // CRC-32 with the Castagnoli polynomial (RFC 3720)

// One frame: length (8 bytes, little-endian), masked CRC of the length, the data, masked CRC of the data.
std::string tfrecord_frame(std::string_view data);

// Serialised tensorflow.Event messages. `wall_time` is in seconds since 1970.
std::string event_file_version(double wall_time);
std::string event_start(double wall_time,
                        int64_t step);  // readers forget what earlier files say from `step` on
std::string event_scalars(double wall_time, int64_t step,
                          const std::vector<std::pair<std::string, double>>& scalars);

// One event file in a run's folder. A resumed run writes another file beside the first.
class TensorBoardWriter {
 public:
  // Makes "events.out.tfevents.SECONDS.STEP.performer"; `next_step` is the first step that will be written.
  // Throws Error when the file cannot be written.
  TensorBoardWriter(const std::string& directory, int64_t next_step);
  void add(int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

 private:
  void write(const std::string& event);

  std::string path_;
  std::ofstream file_;
};

}  // namespace performer::train
