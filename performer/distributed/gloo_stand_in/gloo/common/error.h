// SPDX-License-Identifier: Apache-2.0
// Stands in for Gloo's header of this name, which LibTorch's packages leave out (README.md here).
#pragma once
