# SPDX-License-Identifier: Apache-2.0
# The kernels and what lies below them hold state of the process, such as the chosen CPU target. A program that links the shared
# library must have one copy of it: theirs, and none from an archive.
execute_process(COMMAND ${NM} -C --defined-only ${BUILD}/bin/test_ops OUTPUT_VARIABLE own COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${NM} -C -D --defined-only ${BUILD}/libperformer_ops.so OUTPUT_VARIABLE shared COMMAND_ERROR_IS_FATAL ANY)
set(symbols "performer::kernels::favor_kernels\\(\\)" "performer::nearest\\(" "performer::kernels::available_favor_kernels")
foreach(symbol IN LISTS symbols)
  if(NOT shared MATCHES " T ${symbol}")
    message(FATAL_ERROR "libperformer_ops.so does not offer ${symbol}")
  endif()
  if(own MATCHES " T ${symbol}")
    message(FATAL_ERROR "test_ops has a copy of ${symbol} beside that of libperformer_ops.so")
  endif()
endforeach()
