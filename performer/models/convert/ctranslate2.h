// SPDX-License-Identifier: Apache-2.0
// Translation models of CTranslate2 as encoder-decoders of ours.
#pragma once

#include <string>

#include "performer/models/encoder_decoder.h"

namespace performer::convert {

// What attention is to compute: in the encoder, and in the decoder with its cross-attention.
struct TranslationAttention {
  AttentionConfig encoder = {.kind = "exact"}, decoder = {.kind = "exact"};
};

// A Transformer with norms before its parts and sinusoidal positions, in float32, such as OpenNMT's:
// model.bin of the folder `path`, or that file. `max_length` positions are kept. Token ids are those of the
// source's vocabularies. With exact attention, the default, it computes what the source computes; another
// kind keeps all weights and replaces what attention computes. Throws InputError naming the file for another
// architecture, for tensors that are missing or have no place, and for kinds with parameters of their own,
// which the file does not have.
EncoderDecoder import_ctranslate2(const std::string& path, const TranslationAttention& attention = {},
                                  int64_t max_length = 1024);

}  // namespace performer::convert
