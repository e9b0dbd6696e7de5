// SPDX-License-Identifier: Apache-2.0
// What every attention kind promises, as far as its capabilities go. A test of a new kind calls
// expect_kind_properties("its-name").
#pragma once

#include <string>

#include "performer/nn/attention/kind.h"

namespace performer::nn::properties {

struct Tolerance {
  double relative = 2e-4, absolute = 2e-4;
};

struct Tokens {
  at::Tensor query, key, value;  // [B, T, H, D]
  Tokens slice(int64_t begin, int64_t length) const;
};
Tokens random_tokens(int64_t batch, int64_t length);

// A module with 2 heads of size 6; a causal one with running statistics is trained for a step. In evaluation
// mode.
std::shared_ptr<Attention> make(const std::string& kind, bool causal);
at::Tensor run(Attention& attention, const Tokens& tokens, bool causal,
               const std::optional<at::Tensor>& key_mask = {}, const std::optional<at::Tensor>& cu = {});

// Causal: outputs of a prefix do not change when other tokens follow.
void expect_no_future(const std::string& kind, const Tolerance& tolerance);
// Packed segments, padded rows and single sequences give the same, in every direction that the kind has.
void expect_packed_equals_alone(const std::string& kind, const Tolerance& tolerance);
// What lies at masked places is not seen, and its rows are zero, in packed segments too.
void expect_masked_tokens_are_not_seen(const std::string& kind, const Tolerance& tolerance);
// Tokens one at a time give what one pass gives; rows may be selected on the way.
void expect_steps_equal_one_pass(const std::string& kind, const Tolerance& tolerance);
// Several tokens at a time, in pieces of any length, give what one pass gives; single steps may come between
// them.
void expect_pieces_equal_one_pass(const std::string& kind, const Tolerance& tolerance);
// Chunks that hand on their state give what one pass gives.
void expect_chunks_equal_one_pass(const std::string& kind, const Tolerance& tolerance);
// A context that is kept gives what cross-attention in one pass gives.
void expect_kept_context_equals_one_pass(const std::string& kind, const Tolerance& tolerance);
// A context that is made piece by piece gives what bidirectional attention in one pass gives.
void expect_growing_context_equals_one_pass(const std::string& kind, const Tolerance& tolerance);
// Gradients of inputs and parameters exist and are finite; in double they agree with differences.
void expect_gradients(const std::string& kind);
// Two streams, interleaved, with a redraw between their beginnings, give what each gives alone.
void expect_streams_do_not_meet(const std::string& kind);

// The rows of the matrix, times the values, are the outputs: in one or several ranges, packed and masked, for
// small inputs and for such as make weights that no float holds, in float and double.
void expect_rows_give_outputs(const std::string& kind, const Tolerance& tolerance);

void expect_kind_properties(const std::string& kind, const Tolerance& tolerance = {});

}  // namespace performer::nn::properties
