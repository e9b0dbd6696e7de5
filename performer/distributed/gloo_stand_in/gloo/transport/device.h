// SPDX-License-Identifier: Apache-2.0
// Stands in for Gloo's header of this name, which LibTorch's packages leave out (README.md here).
#pragma once

namespace gloo::transport {

class Device;
class UnboundBuffer {  // never made, copied or called here
 public:
  virtual ~UnboundBuffer();
};

}  // namespace gloo::transport
