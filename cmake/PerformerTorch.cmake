# SPDX-License-Identifier: Apache-2.0
# Finds LibTorch; used by the build and by the package file of an installed copy. Sets what find_package(Torch) sets,
# TORCH_LIBRARIES without CUDA's, and for what is compiled with it performer_torch_flags, performer_torch_openmp_flags and the
# libraries performer_torch_openmp_of_programs.
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

# LibTorch's at::parallel_for is a template whose body runs on one thread unless it is compiled with OpenMP, which LibTorch's own
# flags do not ask for. Programs are linked to the OpenMP library that LibTorch brings along, so that both have the same threads.
# Shared libraries are not: they find it behind LibTorch, whatever its name is in the LibTorch that they are loaded with.
set(performer_torch_openmp_flags "")
set(performer_torch_openmp_of_programs "")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(performer_torch_openmp_flags -fopenmp)
  file(GLOB performer_torch_openmp ${TORCH_INSTALL_PREFIX}/lib/libgomp*.so* ${TORCH_INSTALL_PREFIX}/../torch.libs/libgomp*.so*)
  if(NOT performer_torch_openmp)
    set(performer_torch_openmp gomp)
  endif()
  set(performer_torch_openmp_of_programs "$<$<STREQUAL:$<TARGET_PROPERTY:TYPE>,EXECUTABLE>:${performer_torch_openmp}>")
else()
  message(STATUS "The operators will run on one thread: only GCC has the OpenMP library of LibTorch.")
endif()
