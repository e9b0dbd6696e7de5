// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace performer::data {

// Tells lines of letters from lines of words. Most words of English consist of letters that stand for
// residues, so that "Resource temporarily unavailable" within a record would silently be 30 of them. A line
// reads like words when
// - blanks cut it into pieces that do not all have the size of the first (the last may be shorter), or
// - it is one capital letter and at least three small ones, or has blanks and small letters, and the lines of
// the
//   record before it have neither small letters nor blanks.
class LineShape {
 public:
  void begin_record() { *this = {}; }
  // Of the present line, in its order. Gaps and stops count as capital letters.
  void add_capitals(int64_t count);
  void add_small();
  void add_blank();
  // Ends the line: whether it reads like words.
  bool end_line();
  bool has_blanks() const { return pieces_ > 1; }  // in the present line, between letters
  int64_t blanks_between() const { return pieces_ > 1 ? pieces_ - 1 : 0; }

 private:
  void add_letter(int64_t count);

  // The record's lines before the present one.
  bool lines_before_ = false, small_before_ = false, blanks_before_ = false;
  // The present line.
  int64_t capitals_ = 0, small_ = 0, pieces_ = 0, first_piece_ = 0, piece_ = 0;
  bool even_ = true, in_piece_ = false, capital_first_ = false;
};

}  // namespace performer::data
