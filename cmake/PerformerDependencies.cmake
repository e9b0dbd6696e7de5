# SPDX-License-Identifier: Apache-2.0
# Debian packages, and LibTorch from CMAKE_PREFIX_PATH or the project's Python environment.
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(fmt REQUIRED)
# LibTorch brings headers of another fmt in its include folder; a folder that holds nothing but the installed fmt, named
# before all others, keeps them from meeting the installed library.
get_target_property(fmt_includes fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
find_path(PERFORMER_FMT_HEADERS fmt/format.h PATHS ${fmt_includes} REQUIRED NO_DEFAULT_PATH)
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/fmt_first)
file(CREATE_LINK ${PERFORMER_FMT_HEADERS}/fmt ${PROJECT_BINARY_DIR}/fmt_first/fmt SYMBOLIC)
add_library(performer_fmt INTERFACE)
target_include_directories(performer_fmt INTERFACE ${PROJECT_BINARY_DIR}/fmt_first)
target_link_libraries(performer_fmt INTERFACE fmt::fmt)
find_package(spdlog REQUIRED)
find_package(hwy REQUIRED)
find_package(ZLIB REQUIRED)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
find_package(PNG REQUIRED)
find_package(JPEG REQUIRED)
find_package(nlohmann_json REQUIRED)

if(PERFORMER_WITH_TORCH)
  find_package(CLI11 REQUIRED)
  find_package(tomlplusplus REQUIRED)
  # scripts/build passes Torch_DIR; by hand, give -DCMAKE_PREFIX_PATH=PREFIX.
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
  separate_arguments(torch_flags UNIX_COMMAND "${TORCH_CXX_FLAGS}")
  add_compile_options(${torch_flags})
endif()
