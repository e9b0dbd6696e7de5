# SPDX-License-Identifier: Apache-2.0
# What `cmake --install` copies: each layer's library and headers, the program, and a CMake package, so that
#
#   find_package(performer REQUIRED COMPONENTS ops)
#   target_link_libraries(mine PRIVATE performer::ops)
#
# works against the copy. The layers without a model (base, kernels, ops) are the component "core", which can be installed
# alone (--component core); the others are the component "layers".
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(PERFORMER_PACKAGE_FOLDER ${CMAKE_INSTALL_LIBDIR}/cmake/performer)
set(PERFORMER_CORE_LAYERS base kernels ops)

# performer_install_layer(NAME subfolder...): the subfolders of a core layer hold no public headers.
function(performer_install_layer name)
  set(component layers)
  set(private "")
  if(name IN_LIST PERFORMER_CORE_LAYERS)
    set(component core)
    foreach(sub IN LISTS ARGN)
      list(APPEND private PATTERN ${sub} EXCLUDE)
    endforeach()
  endif()
  # The installed library finds the others beside it, and the LibTorch that it was built with.
  set_target_properties(performer_${name} PROPERTIES EXPORT_NAME ${name}
    INSTALL_RPATH "$ORIGIN;${TORCH_INSTALL_PREFIX}/lib")
  install(TARGETS performer_${name} EXPORT performer_${component}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${component}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${component})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/performer/${name} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/performer
    COMPONENT ${component} FILES_MATCHING PATTERN *.h ${private} PATTERN *-inl.h EXCLUDE)
  set_property(GLOBAL APPEND PROPERTY performer_installed_${component} ${name})
endfunction()

# After all layers.
function(performer_install_package)
  foreach(component core layers)
    install(EXPORT performer_${component} FILE performer_${component}.cmake NAMESPACE performer::
      DESTINATION ${PERFORMER_PACKAGE_FOLDER} COMPONENT ${component})
    get_property(names GLOBAL PROPERTY performer_installed_${component})
    set(PERFORMER_INSTALLED_${component} ${names})
  endforeach()
  configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/performerConfig.cmake.in
    ${PROJECT_BINARY_DIR}/performerConfig.cmake INSTALL_DESTINATION ${PERFORMER_PACKAGE_FOLDER})
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/performerConfigVersion.cmake COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/performerConfig.cmake ${PROJECT_BINARY_DIR}/performerConfigVersion.cmake
    ${PROJECT_SOURCE_DIR}/cmake/PerformerFmt.cmake ${PROJECT_SOURCE_DIR}/cmake/PerformerTorch.cmake
    DESTINATION ${PERFORMER_PACKAGE_FOLDER} COMPONENT core)
  if(TARGET performer_program)
    file(RELATIVE_PATH libraries ${CMAKE_INSTALL_FULL_BINDIR} ${CMAKE_INSTALL_FULL_LIBDIR})
    set_target_properties(performer_program PROPERTIES INSTALL_RPATH "$ORIGIN/${libraries};${TORCH_INSTALL_PREFIX}/lib")
    install(TARGETS performer_program RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
  endif()
endfunction()
