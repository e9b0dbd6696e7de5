# SPDX-License-Identifier: Apache-2.0
# Finds LibTorch; used by the build and by the package file of an installed copy. Sets what find_package(Torch) sets,
# TORCH_LIBRARIES without CUDA's.
# The package file of a CUDA wheel wants a CUDA toolkit to be installed and stops without one. Nothing here is compiled for
# CUDA and the wheel's libraries find their runtime by themselves, so an empty target stands in for the toolkit.
if(NOT TARGET torch::cudart)
  add_library(torch::cudart INTERFACE IMPORTED)
endif()
find_package(Torch REQUIRED)
if(TARGET torch_cuda)
  set(TORCH_LIBRARIES torch_cpu_library c10)  # no start loads the CUDA libraries for nothing
endif()
if(Torch_VERSION VERSION_LESS 2.11)
  message(FATAL_ERROR "LibTorch ${Torch_VERSION} is too old: 2.11 or newer is needed (scripts/setup installs 2.13.0)")
endif()
separate_arguments(performer_torch_flags UNIX_COMMAND "${TORCH_CXX_FLAGS}")
