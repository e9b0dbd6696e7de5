# SPDX-License-Identifier: Apache-2.0
# performer_tests(LAYER [TORCH] [OPTIMIZED] LINK target...): one test program per layer, of tests/LAYER/*.cpp, and one test of ctest
# per suite in it. OPTIMIZED ones compute much themselves; the others are compiled without optimisation.
find_package(GTest REQUIRED)

# Most tests run for seconds, and optimising them took longer than all else: without it they compile in half the time. What they test
# keeps the optimisation of the build. Their precompiled header must be compiled like they are.
set(performer_test_flags -O0)

function(performer_tests layer)
  cmake_parse_arguments(TESTS "TORCH;OPTIMIZED" "" "LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${layer}/*.cpp)
  set(program test_${layer})
  add_executable(${program} ${sources})
  target_link_libraries(${program} PRIVATE ${TESTS_LINK} GTest::gtest GTest::gmock GTest::gtest_main)
  target_include_directories(${program} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${program} PRIVATE
    PERFORMER_SOURCE_DIR="${PROJECT_SOURCE_DIR}" PERFORMER_PROGRAM="${PROJECT_BINARY_DIR}/bin/performer")
  if(NOT TESTS_OPTIMIZED)
    target_compile_options(${program} PRIVATE ${performer_test_flags})
  endif()
  if(TESTS_TORCH)
    performer_torch_header(performer_test_pch FLAGS ${performer_test_flags} -DGTEST_HAS_PTHREAD=1 HEADERS <gtest/gtest.h> <gmock/gmock.h>)
    performer_use_torch(${program} PRIVATE HEADER performer_test_pch)
  else()
    performer_compile_together(${program})
  endif()

  # A process per suite: one per test would spend minutes on loading LibTorch, one per program could not run side by side.
  set(include_file ${CMAKE_CURRENT_BINARY_DIR}/${program}.cmake)
  file(CONFIGURE OUTPUT ${include_file} @ONLY CONTENT [[
set(layer "@layer@")
set(program "@PROJECT_BINARY_DIR@/bin/@program@")
set(listing "@CMAKE_CURRENT_BINARY_DIR@/@program@.txt")
include("@PROJECT_SOURCE_DIR@/cmake/TestSuites.cmake")
]])
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${include_file})
endfunction()
