// SPDX-License-Identifier: Apache-2.0
// The one door between the core and the wing of reference systems.
#pragma once

namespace performer::references {

// Registers every reference system's attention kinds (performer/nn/attention/kind.h). The program and the
// tests call it once at their start; further calls do nothing.
void register_all();

}  // namespace performer::references
