// SPDX-License-Identifier: Apache-2.0
// The one door between the core and the wing of reference systems.
//
// Errors of the wing are UsageError for impossible options and inputs that do not fit, and InputError for
// weights. What an operator of performer/ops refuses, such as an unknown feature function, keeps that layer's
// type, c10::ValueError.
#pragma once

namespace performer::references {

// Registers every reference system's attention kinds (performer/nn/attention/kind.h), and what reads their
// weights (performer/models/convert/convert.h). The program and the
// tests call it once at their start; further calls do nothing.
void register_all();

}  // namespace performer::references
