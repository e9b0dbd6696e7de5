// SPDX-License-Identifier: Apache-2.0
// The configuration of the data layer: how files are read, and how batches are made of what they hold.
#pragma once

#include <cstdint>
#include <string>

#include "performer/base/fields.h"

namespace performer {

struct DataConfig {
  std::string format = "auto";
  std::string vocabulary = "auto";
  std::string documents = "file";
  std::string image_shape;
  std::string image_fit = "error";
  int64_t length = 512;
  int64_t batch_tokens = 8192;
  std::string layout = "packed";
  std::string crop = "split";
  double holdout = 0.05;
  std::string corruption = "bert";
  double mask_rate = 0.15;
  int64_t seed = 0;

  template <class Self, class Visit>
  static void fields(Self& self, Visit&& visit) {
    visit("format", self.format,
          "what the files are: fasta, text, image (PNG and JPEG, folders and tar archives of them, raw .u8 "
          "files), or auto (told by their content)",
          Choices{"auto", "fasta", "text", "image"});
    visit(
        "vocabulary", self.vocabulary,
        "what sequences consist of: protein, dna, rna, bytes, pixels, a file with one symbol a line, or auto "
        "(protein for fasta, bytes for text, pixels for image)");
    visit("documents", self.documents, "text: a file is one document, or a blank-line ends a document",
          Choices{"file", "blank-line"});
    visit("image_shape", self.image_shape,
          "image: HEIGHTxWIDTHxCHANNELS of every image, such as 64x64x3; empty: that of the first image");
    visit("image_fit", self.image_fit,
          "image: what happens to an image larger than image_shape: error, or shrink (each pixel is the mean "
          "of a square of pixels)",
          Choices{"error", "shrink"});
    visit("length", self.length, "longest piece of a sequence the model trains on, in tokens");
    visit("batch_tokens", self.batch_tokens,
          "tokens a batch holds at most (packed), or rows times length (padded)");
    visit("layout", self.layout,
          "packed (segments side by side, no padding), padded, or concatenated (the papers' concat: "
          "sequences joined by the end marker, cut into blocks, attention across them)",
          Choices{"packed", "padded", "concatenated"});
    visit("crop", self.crop,
          "sequences longer than length: split (consecutive pieces, nothing lost), random (one window), "
          "start (the first tokens, as protein_lm), or error",
          Choices{"split", "random", "start", "error"});
    visit("holdout", self.holdout,
          "fraction of the training sequences held out by hash when no --valid is given");
    visit("corruption", self.corruption,
          "masked objective: bert (80 % mask, 10 % random, 10 % kept) or protein-lm (10 % mask, 80 % random, "
          "10 % kept)",
          Choices{"bert", "protein-lm"});
    visit("mask_rate", self.mask_rate, "masked objective: fraction of tokens chosen");
    visit("seed", self.seed, "names the order of sequences, crops, masks and the held-out split");
  }
};
// Throws UsageError naming the key: length below 2 or above batch_tokens, holdout outside [0, 1), mask_rate
// outside (0, 1], an unknown choice, a crop other than split with the concatenated layout (which never cuts a
// sequence), a vocabulary that the format cannot use, an image shape that is none.
void validate(const DataConfig& config);

}  // namespace performer
