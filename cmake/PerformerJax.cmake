# SPDX-License-Identifier: Apache-2.0
# performer_jax: the kernels as functions that JAX calls (python/performer/jax), in one shared library without LibTorch.
# It needs XLA's FFI headers, which jaxlib brings: PERFORMER_JAX_INCLUDE_DIR, or asked from the Python in Python3_EXECUTABLE.
set(PERFORMER_JAX_INCLUDE_DIR "" CACHE PATH "Folder with xla/ffi/api/ffi.h; empty: that of the Python that CMake finds")
if(NOT EXISTS "${PERFORMER_JAX_INCLUDE_DIR}/xla/ffi/api/ffi.h")
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  execute_process(COMMAND ${Python3_EXECUTABLE} -c "import jax.ffi; print(jax.ffi.include_dir())"
    OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE why RESULT_VARIABLE result)
  if(NOT result EQUAL 0 OR NOT EXISTS "${found}/xla/ffi/api/ffi.h")
    message(FATAL_ERROR "PERFORMER_BUILD_JAX needs XLA's FFI headers, and ${Python3_EXECUTABLE} has no jax that brings them: "
      "install jax there (pip install jax), name another Python with -DPython3_EXECUTABLE=PATH, or the folder of "
      "xla/ffi/api/ffi.h with -DPERFORMER_JAX_INCLUDE_DIR=FOLDER.\n${why}")
  endif()
  set(PERFORMER_JAX_INCLUDE_DIR "${found}" CACHE PATH "" FORCE)
endif()

file(GLOB performer_jax_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/python/performer/jax/ffi/*.cpp)
add_library(performer_jax SHARED ${performer_jax_sources})
target_include_directories(performer_jax SYSTEM PRIVATE ${PERFORMER_JAX_INCLUDE_DIR})
target_link_libraries(performer_jax PRIVATE performer::kernels performer::base performer_fmt)
# Only the handlers are visible, so that the library can lie beside performer_ops, which has kernels of its own.
set_target_properties(performer_jax PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  target_link_options(performer_jax PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,defs)
endif()
install(TARGETS performer_jax LIBRARY DESTINATION performer/lib COMPONENT python)
