// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace performer::data {

// What the labels of a table are (labels.h).
struct LabelForm {
  bool classes = true;     // else numbers
  bool per_token = false;  // a label for each token, else one for each sequence
};

}  // namespace performer::data
