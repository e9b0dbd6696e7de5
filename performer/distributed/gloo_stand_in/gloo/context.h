// SPDX-License-Identifier: Apache-2.0
// Stands in for Gloo's header of this name, which LibTorch's packages leave out (README.md here).
#pragma once

#include <chrono>

namespace gloo {

class Context {  // never made, copied or called here
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
