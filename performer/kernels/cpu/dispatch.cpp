// SPDX-License-Identifier: Apache-2.0
// Which kernels run: the best target of the CPU, or the one that PERFORMER_CPU_TARGET forces.
#include <hwy/targets.h>

#include <cstdlib>
#include <memory>

#include "performer/base/error.h"
#include "performer/kernels/cpu/tables.h"
#include "performer/kernels/favor.h"

namespace performer::kernels {
namespace {

constexpr char kBfloat16[] = "avx512bf16";

struct Target {
  const char* name;
  int64_t bit;  // Highway's; 0: not one of its targets
};
constexpr Target kTargets[] = {{kBfloat16, 0},
                               {"avx512", HWY_AVX3},
                               {"avx2", HWY_AVX2},
                               {"sse4", HWY_SSE4},
                               {"ssse3", HWY_SSSE3},
                               {"neon", HWY_NEON},
                               {"portable", HWY_EMU128 | HWY_SCALAR}};

struct Tables {
  std::vector<std::unique_ptr<FavorKernels>> owned;
  std::vector<const FavorKernels*> list;

  Tables() {
    const int64_t usable = hwy::SupportedTargets() & cpu::built_targets();
    const auto with_bfloat16 = cpu::bfloat16_target();
    if (with_bfloat16.supported) add(kBfloat16, with_bfloat16.entries);
    for (const Target& target : kTargets) {
      const int64_t bit = target.bit & usable;
      if (bit != 0) add(target.name, cpu::entries_for(bit));
    }
    list.push_back(&favor_reference());
  }
  void add(const char* name, const cpu::EntryPoints& e) {
    owned.push_back(std::make_unique<FavorKernels>(
        FavorKernels{name, e.workspace, e.forward, e.backward, e.step, e.step_workspace}));
    list.push_back(owned.back().get());
  }
};

const Tables& tables() {
  static const Tables all;
  return all;
}

const FavorKernels& choose() {
  const char* forced = std::getenv("PERFORMER_CPU_TARGET");
  if (forced == nullptr || *forced == '\0') return *tables().list.front();
  const std::string name = forced;
  for (const FavorKernels* table : tables().list) {
    if (table->name == name) return *table;
  }
  std::string present;
  for (const FavorKernels* table : tables().list) present += (present.empty() ? "" : ", ") + table->name;
  for (const Target& target : kTargets) {
    if (name != target.name) continue;
    const bool built =
        target.bit != 0 ? (target.bit & cpu::built_targets()) != 0 : cpu::bfloat16_target().built;
    throw UsageError(fmt::format("PERFORMER_CPU_TARGET={}: {}; usable here: {}", name,
                                 built ? "this CPU, or the system it runs under, lacks these instructions"
                                       : "this build has no kernels for that target",
                                 present));
  }
  throw UsageError(fmt::format("PERFORMER_CPU_TARGET={}: no such target; usable here: {}", name, present));
}

}  // namespace

const FavorKernels& favor_kernels() {
  static const FavorKernels& chosen = choose();
  return chosen;
}

std::vector<const FavorKernels*> available_favor_kernels() {
  return tables().list;
}

}  // namespace performer::kernels
