# SPDX-License-Identifier: Apache-2.0
# performer_layer(NAME [TORCH] [SUBFOLDERS dir...] LINK target...)
# Makes the static library performer_NAME (alias performer::NAME) of performer/NAME/*.cpp.
# TORCH layers share one precompiled header: all of LibTorch costs about 25 s a file without it.
function(performer_layer name)
  cmake_parse_arguments(LAYER "TORCH" "" "LINK;SUBFOLDERS" ${ARGN})
  set(folder ${PROJECT_SOURCE_DIR}/performer/${name})
  set(patterns ${folder}/*.cpp)
  foreach(sub IN LISTS LAYER_SUBFOLDERS)
    list(APPEND patterns ${folder}/${sub}/*.cpp)
  endforeach()
  file(GLOB sources CONFIGURE_DEPENDS ${patterns})
  add_library(performer_${name} STATIC ${sources})
  add_library(performer::${name} ALIAS performer_${name})
  target_include_directories(performer_${name} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(performer_${name} PUBLIC ${LAYER_LINK})
  if(LAYER_TORCH)
    performer_use_torch(performer_${name} PUBLIC)
  endif()
endfunction()

# What large headers cost is paid for each translation unit, so files are compiled several at a time.
set(PERFORMER_FILES_AT_A_TIME 12 CACHE STRING "Files compiled as one; 1 rebuilds a changed file fastest, 12 everything")
function(performer_compile_together target)
  if(PERFORMER_FILES_AT_A_TIME GREATER 1)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${PERFORMER_FILES_AT_A_TIME})
  endif()
endfunction()

# performer_torch_header(NAME FLAGS flag... HEADERS header...): a precompiled header of LibTorch's share and HEADERS, made once.
function(performer_torch_header name)
  cmake_parse_arguments(HEADER "" "" "FLAGS;HEADERS" ${ARGN})
  if(TARGET ${name})
    return()
  endif()
  # Written only when it changes: a new file in any layer would otherwise rebuild the header and all that use it.
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/${name}.cpp CONTENT "// Carrier of a precompiled header.\n")
  add_library(${name} STATIC ${PROJECT_BINARY_DIR}/${name}.cpp)
  target_link_libraries(${name} PUBLIC performer_fmt ${TORCH_LIBRARIES})
  target_include_directories(${name} SYSTEM PUBLIC ${TORCH_INCLUDE_DIRS})
  target_compile_options(${name} PRIVATE ${HEADER_FLAGS})
  target_precompile_headers(${name} PRIVATE <ATen/ATen.h> <torch/nn/module.h> <torch/nn/modules/linear.h>
                                            <torch/csrc/autograd/custom_function.h> ${HEADER_HEADERS})
endfunction()

# performer_use_torch(TARGET PUBLIC|PRIVATE [HEADER name]): links LibTorch and reuses its precompiled header.
function(performer_use_torch target scope)
  cmake_parse_arguments(USE "" "HEADER" "" ${ARGN})
  if(NOT USE_HEADER)
    set(USE_HEADER performer_torch_pch)
    performer_torch_header(performer_torch_pch)
  endif()
  # The precompiled header is position-independent code; programs must be compiled alike to use it.
  get_target_property(type ${target} TYPE)
  if(type STREQUAL EXECUTABLE)
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
  target_link_libraries(${target} ${scope} ${TORCH_LIBRARIES})
  target_include_directories(${target} SYSTEM ${scope} ${TORCH_INCLUDE_DIRS})
  target_precompile_headers(${target} REUSE_FROM ${USE_HEADER})
  performer_compile_together(${target})
endfunction()
