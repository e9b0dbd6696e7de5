// SPDX-License-Identifier: Apache-2.0
#include "performer/data/fasta/line_shape.h"

namespace performer::data {

void LineShape::add_letter(int64_t count) {
  if (!in_piece_) {
    // The piece before this one was not the last: it must have the size of the first.
    if (pieces_ == 1) first_piece_ = piece_;
    if (pieces_ > 1 && piece_ != first_piece_) even_ = false;
    in_piece_ = true;
    ++pieces_;
    piece_ = 0;
  }
  piece_ += count;
}

void LineShape::add_capitals(int64_t count) {
  if (count == 0) return;
  if (pieces_ == 0) capital_first_ = true;
  add_letter(count);
  capitals_ += count;
}

void LineShape::add_small() {
  add_letter(1);
  ++small_;
}

void LineShape::add_blank() {
  in_piece_ = false;
}

bool LineShape::end_line() {
  constexpr int64_t kWord = 3;
  const bool blanks = pieces_ > 1, plain_before = lines_before_ && !small_before_ && !blanks_before_;
  const bool uneven = blanks && (!even_ || piece_ > first_piece_);
  const bool capitalised = capital_first_ && capitals_ == 1 && small_ >= kWord;
  const bool words = uneven || (plain_before && (capitalised || (blanks && small_ > 0)));
  lines_before_ |= pieces_ > 0;
  small_before_ |= small_ > 0;
  blanks_before_ |= blanks;
  capitals_ = small_ = pieces_ = first_piece_ = piece_ = 0;
  even_ = true;
  in_piece_ = capital_first_ = false;
  return words;
}

}  // namespace performer::data
