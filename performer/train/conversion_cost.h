// SPDX-License-Identifier: Apache-2.0
// What the attention of a converted model costs beside exact attention: time on this machine, and memory.
#pragma once

#include <nlohmann/json.hpp>

#include "performer/models/language_model.h"

namespace performer::train {

// One layer and one sequence, forward, float32, with LibTorch's threads as they are set; the fastest of
// three:
// {"lengths", "exact_ms", "converted_ms", "faster_from"}. faster_from is the first of the lengths from which
// the converted layer stays faster by a tenth at least, null when there is none. Lengths double from 128 to
// `longest`. Of kind hybrid the first layer is measured.
nlohmann::ordered_json measure_speed(const LanguageModel& model, int64_t longest = 4096);

// MiB of float32 that attention keeps of a sequence of 1024, 8192 and 65536 tokens while it is read token by
// token, over all layers: keys and values of exact heads, and of linear ones a state that does not grow. Null
// for kinds whose memory is not known here.
nlohmann::ordered_json kept_memory(const LanguageModel& model);

}  // namespace performer::train
