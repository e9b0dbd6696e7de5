// SPDX-License-Identifier: Apache-2.0
// Readers of other programs' weights: what they read, what they refuse, and that no bytes bring them down.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/readers/ctranslate2.h"
#include "performer/models/readers/llama2c.h"
#include "performer/models/readers/msgpack.h"
#include "performer/models/readers/pickle.h"
#include "performer/models/readers/torch_file.h"
#include "performer/models/readers/zip.h"
#include "tests/fuzz/damage.h"
#include "tests/models/pretrained.h"

#define LLVMFuzzerTestOneInput fuzz_pickle
#include "tests/fuzz/pickle_fuzz.cpp"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput fuzz_flax
#include "tests/fuzz/flax_fuzz.cpp"
#undef LLVMFuzzerTestOneInput

namespace performer {
namespace {

using ::testing::HasSubstr;
using namespace std::string_literals;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

StoredModel unpickled(const std::string& pickle) {
  return read_pickle(bytes_of(pickle), pickle_fuzz::small_storage, "test");
}
std::string pickle_message(const std::string& pickle) {
  try {
    unpickled(pickle);
  } catch (const InputError& error) {
    return error.what();
  }
  return "read";
}

// A tensor of size [2, 2] and stride [2, 1] over a storage of `count` numbers, from `offset`.
std::string tensor_pickle(char count, char offset, char stride = 2) {
  std::string pickle = "\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n"s;
  pickle +=
      "((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0"
      "0X\x03\0\0\0"
      "cpuK"s;
  pickle += count;
  pickle += "tQK"s + offset + "K\x02K\x02\x86K" + stride + "K\x01\x86\x89)tRs."s;
  return pickle;
}

TEST(Pickle, ReadsPlainDataByName) {
  const StoredModel stored = unpickled(
      "\x80\x02}(X\x01\0\0\0aK\x05X\x01\0\0\0b}X\x01\0\0\0c\x88sX\x01\0\0\0l](G?\xf8\0\0\0\0\0\0X\x02\0\0\0hieX\x01\0\0\0nJ\xfe\xff\xff\xffu."s);
  EXPECT_EQ(stored.scalars.at("a"), Scalar(int64_t{5}));
  EXPECT_EQ(stored.scalars.at("b.c"), Scalar(true));
  EXPECT_EQ(stored.scalars.at("l.0"), Scalar(1.5));
  EXPECT_EQ(stored.scalars.at("l.1"), Scalar(std::string("hi")));
  EXPECT_EQ(stored.scalars.at("n"), Scalar(int64_t{-2}));
}

TEST(Pickle, ReadsObjectsAsTheirAttributes) {
  const StoredModel stored = unpickled(
      "\x80\x02"
      "cargparse\nNamespace\n)\x81}X\x05\0\0\0headsK\x04sb."s);
  EXPECT_EQ(stored.scalars.at("heads"), Scalar(int64_t{4}));
}

TEST(Pickle, RunsNothing) {
  EXPECT_THAT(pickle_message("\x80\x02"
                             "cposix\nsystem\nX\x04\0\0\0true\x85R."s),
              HasSubstr("asks for posix.system"));
  EXPECT_THAT(pickle_message("\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."s),
              HasSubstr("asks for posix.system"));
  EXPECT_THAT(pickle_message("ios\nsystem\n(S'true'\n."s), HasSubstr("opcode 0x69"));
  EXPECT_THAT(pickle_message("\x80\x02K\x01K\x02\x85R."s), HasSubstr("no function of plain data"));
}

TEST(Pickle, MakesTensorsWithinTheirStorage) {
  EXPECT_EQ(unpickled(tensor_pickle(4, 0)).tensors.at("w").sizes(), at::IntArrayRef({2, 2}));
  EXPECT_EQ(unpickled(tensor_pickle(5, 1)).tensors.at("w").storage_offset(), 1);
  EXPECT_THAT(pickle_message(tensor_pickle(4, 1)), HasSubstr("does not fit its storage of 4"));
  EXPECT_THAT(pickle_message(tensor_pickle(4, 0, 3)), HasSubstr("does not fit its storage of 4"));
  EXPECT_THAT(pickle_message(tensor_pickle(3, 0, 0)), HasSubstr("does not fit its storage of 3"))
      << "expanded to more numbers than there are";
}

TEST(Pickle, EndsOnValuesThatHoldThemselves) {
  EXPECT_THAT(pickle_message("]q\0h\0a."s), HasSubstr("nested more than 64 deep"));
}

TEST(Pickle, RefusesDamage) {
  EXPECT_THAT(pickle_message(""), HasSubstr("truncated"));
  EXPECT_THAT(pickle_message("\x80\x02}"s), HasSubstr("truncated"));
  EXPECT_THAT(pickle_message("e."), HasSubstr("did not begin"));
  EXPECT_THAT(pickle_message("0."), HasSubstr("is not there"));
  EXPECT_THAT(pickle_message("h\x07."), HasSubstr("did not make"));
  EXPECT_THAT(pickle_message("K\1K\2K\3s."), HasSubstr("no dictionary"));
}

TEST(TorchFile, ReadsBothFormats) {
  for (const char* name : {"fairseq_esm2", "fairseq_roberta"}) {
    const StoredModel stored = read_torch_file(pretrained_path(name));
    EXPECT_GT(stored.tensors.size(), 30U) << name;
  }
  const StoredModel old = read_torch_file(pretrained_path("fairseq_roberta"));
  EXPECT_EQ(old.scalars.at("args.encoder_attention_heads"), Scalar(int64_t{4}));
  EXPECT_EQ(old.scalars.at("extra_state.best"), Scalar(1.5));
}

TEST(TorchFile, SaysWhatIsWrong) {
  const auto message = [](const std::string& bytes) {
    try {
      parse_torch_file(bytes_of(bytes), "file");
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("read");
  };
  for (const char* name : {"fairseq_esm2", "fairseq_roberta"}) {
    std::string file = read_file(pretrained_path(name));
    EXPECT_THAT(message(file.substr(0, file.size() - 4000)),
                ::testing::AnyOf(HasSubstr("truncated"), HasSubstr("damaged")));
  }
  std::string file = read_file(pretrained_path("fairseq_esm2"));
  const size_t data = file.find("FB");  // within the padding before a tensor's data
  file[file.size() / 2] = static_cast<char>(file[file.size() / 2] ^ 1);
  EXPECT_THAT(message(file), HasSubstr("checksum")) << data;
  EXPECT_THAT(message("neither"), HasSubstr("not written by torch.save()"));
}

// Flax packs an array as an extension of (shape, type, bytes).
std::string flax_array(const std::string& shape, const std::string& type, const std::string& bytes) {
  std::string inner = "\x93"s + shape + static_cast<char>(0xa0 + type.size()) + type + "\xc4"s +
                      static_cast<char>(bytes.size()) + bytes;
  return "\xc7"s + static_cast<char>(inner.size()) + "\x01"s + inner;
}
std::string flax_message(const std::string& bytes) {
  try {
    parse_flax(bytes_of(bytes), "file");
  } catch (const InputError& error) {
    return error.what();
  }
  return "read";
}

TEST(Flax, ReadsNestedArrays) {
  const std::string bytes = "\x82\xa6params\x81\xa1w"s +
                            flax_array("\x92\x01\x02", "float32", "\0\0\x80?\0\0\0@"s) +
                            "\xa4step\xcd\x01\x02"s;
  const StoredModel stored = parse_flax(bytes_of(bytes), "file");
  EXPECT_TRUE(stored.tensors.at("params/w").equal(at::tensor({1.F, 2.F}).view({1, 2})));
  EXPECT_EQ(stored.scalars.at("step"), Scalar(int64_t{258}));
}

TEST(Flax, SaysWhatIsWrong) {
  EXPECT_THAT(flax_message("\x81\xa1w"s + flax_array("\x91\x03", "float32", "\0\0\x80?"s)),
              HasSubstr("does not fill"));
  EXPECT_THAT(flax_message("\x81\xa1w"s + flax_array("\x91\x01", "quaternion", "\0\0\x80?"s)),
              HasSubstr("unknown type quaternion"));
  EXPECT_THAT(flax_message("\x81\xa1w"s), HasSubstr("truncated"));
  EXPECT_THAT(flax_message("\x81\x01\x02"s), HasSubstr("a key is no text"));
  EXPECT_THAT(flax_message("\x01\x02"s), HasSubstr("behind its value"));
  EXPECT_THAT(flax_message(std::string(100, '\x91')), HasSubstr("nested more than 32 deep"));
  EXPECT_THAT(flax_message("\xdd\xff\xff\xff\xff"s), HasSubstr("truncated"));
}

// One variable [2], in the version that data of OpenNMT have.
std::string ctranslate2_file() {
  return "\x02\0\0\0\x05\0Spec\0\x01\0\0\0\x01\0\0\0\x02\0w\0\x01\x02\0\0\0\x04\x02\0\0\0\0\0\x80?\0\0\0@"s;
}

TEST(Ctranslate2, ReadsVariables) {
  const Ctranslate2Model model = parse_ctranslate2(bytes_of(ctranslate2_file()), "file");
  EXPECT_EQ(model.specification, "Spec");
  EXPECT_TRUE(model.stored.tensors.at("w").equal(at::tensor({1.F, 2.F})));
  std::string other = ctranslate2_file();
  other[0] = 9;
  EXPECT_THROW(parse_ctranslate2(bytes_of(other), "file"), InputError);
}

TEST(Llama2c, ReadsItsSizesAndNothingElse) {
  const std::string path = (std::filesystem::path(::testing::TempDir()) / "llama2c.bin").string();
  const int32_t sizes[] = {4, 6, 1, 2, 1, 5, 3};
  std::string file(reinterpret_cast<const char*>(sizes), sizeof(sizes));
  const size_t numbers = 5 * 4 + 4 + 16 + 8 + 8 + 16 + 4 + 24 + 24 + 24 + 4 + 3 + 3;
  file.resize(file.size() + numbers * sizeof(float));
  write_file(path, file);
  EXPECT_TRUE(is_llama2c(path));
  EXPECT_EQ(read_llama2c(path).stored.tensors.at("wk").sizes(), at::IntArrayRef({1, 2, 4}));
  write_file(path, file + "x");
  EXPECT_FALSE(is_llama2c(path));
  EXPECT_THROW(read_llama2c(path), InputError);
  std::filesystem::remove(path);
}

TEST(ReadersFuzz, SurviveDamagedFiles) {
  const std::string zip =
      read_file(std::string(PERFORMER_SOURCE_DIR) + "/tests/fuzz/corpus/pickle/zip.input");
  const std::string old =
      read_file(std::string(PERFORMER_SOURCE_DIR) + "/tests/fuzz/corpus/pickle/old.input");
  EXPECT_EQ(parse_torch_file(bytes_of(zip), "good").tensors.size(), 2U)
      << "what is damaged here was good before";
  EXPECT_EQ(parse_torch_file(bytes_of(old), "good").tensors.size(), 2U);
  fuzz::run_damaged(fuzz_pickle, {zip, old, tensor_pickle(4, 0)}, 1500, "\x80.}])(tuesRbQXKJMcq\x85\x86\x87");
  const std::string flax = "\x81\xa1w"s + flax_array("\x91\x02", "float32", "\0\0\x80?\0\0\0@"s);
  fuzz::run_damaged(fuzz_flax, {flax, ctranslate2_file()}, 2000, "\x81\x91\xa1\xc4\xc7\xca\xcd\xdd\xdf");
}

TEST(ReadersFuzz, PassTheCorpus) {
  fuzz::run_corpus(fuzz_pickle, "pickle");
  fuzz::run_corpus(fuzz_flax, "flax");
}

}  // namespace
}  // namespace performer
