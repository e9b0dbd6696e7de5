// SPDX-License-Identifier: Apache-2.0
#include "performer/models/safetensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/base/philox.h"
#include "tests/errors.h"

namespace performer {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / fmt::format("performer-safetensors-{}", getpid());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const std::string& name = "x.safetensors") const { return (folder_ / name).string(); }

  fs::path folder_;
};

std::string file_bytes(const std::string& header, const std::string& data) {
  uint64_t size = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &size, 8);
  return bytes + header + data;
}

TensorFile parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())), "test.safetensors");
}

std::string message_of(const std::string& bytes) {
  try {
    parse(bytes);
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST_F(Safetensors, KeepsEveryTypeShapeAndStride) {
  TensorFile file;
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                                    at::kShort, at::kChar, at::kByte, at::kBool}) {
    file.tensors[c10::toString(type)] = (at::randn({3, 5}) * 3).abs().to(type);
  }
  file.tensors["strided"] = at::arange(24).view({4, 6}).t().slice(0, 0, 6, 2);
  file.tensors["scalar"] = at::tensor(2.5);
  file.tensors["empty"] = at::empty({0, 7});
  file.metadata = {{"format", "performer"}, {"note", "\"quoted\" \xc3\xa9"}};
  write_safetensors(path(), file);
  const TensorFile back = read_safetensors(path());
  EXPECT_EQ(back.metadata, file.metadata);
  ASSERT_EQ(back.tensors.size(), file.tensors.size());
  for (const auto& [name, tensor] : file.tensors) {
    EXPECT_EQ(back.tensors.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(back.tensors.at(name), tensor)) << name;
  }
}

TEST_F(Safetensors, AlignsTheDataAndIsReproducible) {
  const TensorFile file{{{"a", at::ones({3}, at::kByte)}, {"b", at::ones({2}, at::kDouble)}}, {}};
  write_safetensors(path(), file);
  write_safetensors(path("y"), file);
  const std::string bytes = read_file(path());
  EXPECT_EQ(bytes, read_file(path("y")));
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  EXPECT_EQ(header % 8, 0u);
  EXPECT_THAT(bytes.substr(8, header), HasSubstr(R"("b":{"data_offsets":[0,16],"dtype":"F64","shape":[2]})"));
  EXPECT_EQ(bytes.size(), 8 + header + 19);
}

TEST_F(Safetensors, RefusesToWriteWhatTheFormatLacks) {
  EXPECT_THROW(write_safetensors(path(), {{{"c", at::zeros({1}, at::kComplexFloat)}}, {}}), Error);
  EXPECT_THROW(write_safetensors(path(), {{{"u", at::Tensor()}}, {}}), Error);
  EXPECT_THROW(write_safetensors(path(), {{{"__metadata__", at::zeros({1})}}, {}}), Error);
  EXPECT_THAT(
      test::error_of<Error>([&] {
        write_safetensors(path(), {{{"\xff", at::zeros({1})}}, {}});
      }),
      testing::EndsWith("a name or metadata text is not UTF-8 (invalid UTF-8 byte at index 0: 0xFF)"));
  EXPECT_TRUE(fs::is_empty(folder_)) << "something half-written was left";
}

TEST_F(Safetensors, NamesTheFileThatIsMissing) {
  EXPECT_THROW(read_safetensors(path("absent")), InputError);
}

TEST_F(Safetensors, RefusesDamagedFilesByReason) {
  const std::string good = R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
  EXPECT_EQ(parse(file_bytes(good, "xy")).tensors.at("a")[1].item<int>(), 'y');
  EXPECT_THAT(message_of(""), HasSubstr("has 0 bytes"));
  EXPECT_THAT(message_of("abc"), HasSubstr("has 3 bytes"));
  EXPECT_THAT(message_of(std::string(64, '\x7f')), HasSubstr("its header would have"));
  EXPECT_THAT(message_of(file_bytes(good, "xy").substr(0, 30)), HasSubstr("truncated"));
  EXPECT_THAT(message_of(file_bytes(good, "x")), HasSubstr("truncated: tensor 'a' ends at byte 2"));
  EXPECT_THAT(message_of(file_bytes(good, "xyz")), HasSubstr("1 bytes after its last tensor"));
  EXPECT_THAT(message_of(file_bytes("{", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(message_of(file_bytes("[]", "")), HasSubstr("not a JSON object"));
  const auto entry = [](const std::string& inner, const std::string& data) {
    return message_of(file_bytes("{\"a\":" + inner + "}", data));
  };
  EXPECT_THAT(entry("3", ""), HasSubstr("must have exactly dtype, shape and data_offsets"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[2]})", "xy"), HasSubstr("must have exactly"));
  EXPECT_THAT(entry(R"({"dtype":7,"shape":[2],"data_offsets":[0,2]})", "xy"),
              HasSubstr("dtype of tensor 'a'"));
  EXPECT_THAT(entry(R"({"dtype":"F8","shape":[2],"data_offsets":[0,2]})", "xy"),
              HasSubstr("unknown type F8"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":2,"data_offsets":[0,2]})", "xy"),
              HasSubstr("shape of tensor 'a'"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[-2],"data_offsets":[0,2]})", "xy"),
              HasSubstr("shape of tensor 'a'"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[2.5],"data_offsets":[0,2]})", "xy"),
              HasSubstr("shape of tensor 'a'"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[3],"data_offsets":[0,2]})", "xy"),
              HasSubstr("does not fill its bytes"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[2],"data_offsets":[2,0]})", "xy"),
              HasSubstr("does not fill its bytes"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[2],"data_offsets":[0]})", "xy"),
              HasSubstr("data_offsets of tensor 'a'"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[2],"data_offsets":[0,-2]})", "xy"), HasSubstr("data_offsets"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[4294967296,4294967296,4],"data_offsets":[0,0]})", ""),
              HasSubstr("does not fill its bytes"));
  EXPECT_THAT(entry(R"({"dtype":"U8","shape":[0,4294967296,4294967296,4],"data_offsets":[0,0]})", ""),
              HasSubstr("does not fill its bytes"));
  EXPECT_THAT(entry(R"({"dtype":"BOOL","shape":[2],"data_offsets":[0,2]})", "xy"),
              HasSubstr("neither 0 nor 1"));
  const auto pair = [](int begin) {
    return message_of(file_bytes(fmt::format(R"({{"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},
        "b":{{"dtype":"U8","shape":[2],"data_offsets":[{},{}]}}}})",
                                             begin, begin + 2),
                                 "wxyzw"));
  };
  EXPECT_THAT(pair(1), HasSubstr("tensor 'b' starts at byte 1 of the data, expected 2: tensors overlap"));
  EXPECT_THAT(pair(3), HasSubstr("tensors leave a gap"));
  EXPECT_THAT(message_of(file_bytes(R"({"__metadata__":{"a":1}})", "")), HasSubstr("__metadata__"));
  EXPECT_THAT(message_of(file_bytes(R"({"__metadata__":[]})", "")), HasSubstr("__metadata__"));
  EXPECT_THAT(message_of(file_bytes(std::string(100000, '['), "")), HasSubstr("not a JSON object"));
}

// What the fuzzer does, in small and the same on every run: any bytes are read or refused, never worse.
TEST_F(Safetensors, SurvivesMutatedFiles) {
  write_safetensors(path(),
                    {{{"w", at::randn({3, 4})}, {"flag", at::ones({5}, at::kBool)}, {"n", at::arange(6)}},
                     {{"format", "performer"}}});
  const std::string good = read_file(path());
  PhiloxStream random(20);
  const std::string alphabet = "{}[]\":,0123456789eE+-.FUBI\\";
  int refused = 0, read = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string bytes = good;
    for (uint64_t edits = 1 + random.below(3); edits > 0; --edits) {
      const size_t at = bytes.empty() ? 0 : random.below(bytes.size());
      switch (random.below(5)) {
        case 0:
          bytes.resize(at);
          break;
        case 1:
          bytes.insert(at, 1, alphabet[random.below(alphabet.size())]);
          break;
        case 2:
          bytes.erase(at, 1 + random.below(8));
          break;
        case 3:
          if (!bytes.empty()) bytes[at] = alphabet[random.below(alphabet.size())];
          break;
        default:
          if (!bytes.empty()) bytes[at] = static_cast<char>(random.next());
          break;
      }
    }
    if (message_of(bytes) == "accepted")
      ++read;
    else
      ++refused;
  }
  EXPECT_GT(refused, 1000);
  EXPECT_GT(read, 100);
}

}  // namespace
}  // namespace performer
