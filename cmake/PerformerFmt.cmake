# SPDX-License-Identifier: Apache-2.0
# performer_fmt_headers(FOLDER): makes FOLDER hold the headers of the installed fmt and nothing else. LibTorch brings headers
# of another fmt in its include folder; FOLDER, named before all others, keeps them from meeting the installed library.
# Used by the build and by the package file of an installed copy.
find_package(fmt REQUIRED)
function(performer_fmt_headers folder)
  get_target_property(fmt_includes fmt::fmt INTERFACE_INCLUDE_DIRECTORIES)
  find_path(PERFORMER_FMT_HEADERS fmt/format.h PATHS ${fmt_includes} REQUIRED NO_DEFAULT_PATH)
  file(MAKE_DIRECTORY ${folder})
  file(CREATE_LINK ${PERFORMER_FMT_HEADERS}/fmt ${folder}/fmt SYMBOLIC)
endfunction()
