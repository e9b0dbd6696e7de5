// SPDX-License-Identifier: Apache-2.0
// The kinds of the core, one function a file. Private to nn/attention.
#pragma once

#include <vector>

#include "performer/nn/attention/kind.h"

namespace performer::nn {

std::vector<AttentionKind> favor_kinds();  // favor.cpp: favor-softmax, favor-relu and all other feature maps
// auto.cpp; `linear_options` are those of the favor-* kinds, which it takes too.
AttentionKind auto_kind(const std::vector<FieldInfo>& linear_options);
// hybrid.cpp; likewise.
AttentionKind hybrid_kind(const std::vector<FieldInfo>& linear_options);
AttentionKind exact_kind();      // exact.cpp
AttentionKind local_kind();      // local.cpp
AttentionKind sparse_kind();     // sparse.cpp
AttentionKind global_kind();     // global.cpp
AttentionKind lsh_kind();        // lsh.cpp
AttentionKind linformer_kind();  // linformer.cpp
AttentionKind windowed_kind();   // windowed.cpp: favor-windowed
AttentionKind identity_kind();   // identity.cpp

// favor.cpp: ops::validate(), whose errors are those of the configuration here. Throws UsageError naming the
// kind.
void validate_map(const AttentionConfig& config, const ops::FeatureMapOptions& map, int64_t head_size);

// favor.cpp: whether a map has a random projection, and whether the option `name` of its kind, or the seed,
// decides anything with it.
bool draws_projection(const ops::FeatureMapOptions& map);
bool map_reads(const ops::FeatureMapOptions& map, const std::string& name);

// favor.cpp: AttentionKind::numbers of a layer with that map.
double map_numbers(const ops::FeatureMapOptions& map, const AttentionShape& shape);

}  // namespace performer::nn
