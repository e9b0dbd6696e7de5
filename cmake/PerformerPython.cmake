# SPDX-License-Identifier: Apache-2.0
# The Python package's share of the build: the target performer_python, and the install component "python", which is the
# content of a wheel beside python/performer. Its libraries find LibTorch beside the package, in torch/lib, and bring what a
# machine may lack: Highway's library (fmt is compiled in).
set(performer_python_libraries "")
foreach(library performer_ops performer_jax)
  if(TARGET ${library})
    list(APPEND performer_python_libraries ${library})
    set_target_properties(${library} PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../../torch/lib")
  endif()
endforeach()
add_custom_target(performer_python DEPENDS ${performer_python_libraries})

if(TARGET performer_ops)
  install(TARGETS performer_ops LIBRARY DESTINATION performer/lib COMPONENT python)
  # The version of LibTorch that the library needs; performer/_library.py compares it.
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/libperformer_ops.torch CONTENT "${Torch_VERSION}\n")
  install(FILES ${PROJECT_BINARY_DIR}/libperformer_ops.torch DESTINATION performer/lib COMPONENT python)
endif()

# A shared Highway goes along, under the name that the libraries ask for.
get_target_property(performer_hwy_type hwy::hwy TYPE)
if(performer_hwy_type STREQUAL "SHARED_LIBRARY")
  install(CODE "
    file(REAL_PATH \"$<TARGET_FILE:hwy::hwy>\" real)
    file(INSTALL DESTINATION \"\${CMAKE_INSTALL_PREFIX}/performer/lib\" TYPE FILE FILES \"\${real}\"
      RENAME \"$<TARGET_SONAME_FILE_NAME:hwy::hwy>\")" COMPONENT python)
endif()
