// SPDX-License-Identifier: Apache-2.0
// Failed allocations as errors that say what to change.
#pragma once

#include <c10/util/Exception.h>

#include <new>
#include <string>

#include "performer/base/error.h"

namespace performer::train {

double physical_memory();  // of this machine, in bytes

// Whether LibTorch failed because an allocation did.
bool is_out_of_memory(const c10::Error& error);

// work(); when memory runs out, an Error "out of memory WHERE(): ADVICE()" instead. Both are called only
// then.
template <class Work, class Where, class Advice>
auto or_out_of_memory(Work&& work, Where&& where, Advice&& advice) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
  } catch (const c10::Error& error) {
    if (!is_out_of_memory(error)) throw;
  }
  throw Error(fmt::format("out of memory {}: {}", where(), advice()));
}

}  // namespace performer::train
