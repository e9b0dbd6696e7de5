# SPDX-License-Identifier: Apache-2.0
# Installs the core libraries into a new folder, and there configures, builds and runs examples/ with nothing but that folder
# named: what a CMake project outside does.
set(folder ${BUILD}/install_test)
file(REMOVE_RECURSE ${folder})
set(quietly COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${folder}/prefix --component core OUTPUT_QUIET ${quietly})
# A copy: nothing of the source tree may be found by a path relative to it.
file(COPY ${SOURCE}/examples DESTINATION ${folder})
execute_process(COMMAND ${CMAKE_COMMAND} -S ${folder}/examples -B ${folder}/build -G ${GENERATOR}
  -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${folder}/prefix
  -DCMAKE_BUILD_TYPE=Release ${quietly})
execute_process(COMMAND ${CMAKE_COMMAND} --build ${folder}/build ${quietly})
execute_process(COMMAND ${folder}/build/attention_example ${quietly})

# The program must use the installed library, not the one of the build.
execute_process(COMMAND ldd ${folder}/build/attention_example OUTPUT_VARIABLE libraries ${quietly})
if(NOT libraries MATCHES "${folder}/prefix/[^ ]*libperformer_ops")
  message(FATAL_ERROR "the example does not load ${folder}/prefix/.../libperformer_ops:\n${libraries}")
endif()

# A component that was not installed is named.
file(WRITE ${folder}/missing/CMakeLists.txt
  "cmake_minimum_required(VERSION 3.25)\nproject(missing LANGUAGES CXX)\nfind_package(performer REQUIRED COMPONENTS ops models)\n")
execute_process(COMMAND ${CMAKE_COMMAND} -S ${folder}/missing -B ${folder}/missing/build -G ${GENERATOR}
  -DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_PREFIX_PATH=${folder}/prefix
  RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE message)
if(result EQUAL 0 OR NOT message MATCHES "no component 'models'")
  message(FATAL_ERROR "a missing component must be an error that names it, found ${result}: ${message}")
endif()
file(REMOVE_RECURSE ${folder})
