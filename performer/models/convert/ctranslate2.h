// SPDX-License-Identifier: Apache-2.0
// Translation models of CTranslate2 as encoder-decoders of ours.
#pragma once

#include <string>

#include "performer/models/encoder_decoder.h"

namespace performer::convert {

// A Transformer with norms before its parts and sinusoidal positions, in float32, such as OpenNMT's:
// model.bin of the folder `path`, or that file. `max_length` positions are kept. Token ids are those of the
// source's vocabularies. Throws InputError naming the file for another architecture, and for tensors that are
// missing or have no place.
EncoderDecoder import_ctranslate2(const std::string& path, const std::string& attention = "exact",
                                  int64_t max_length = 1024);

}  // namespace performer::convert
