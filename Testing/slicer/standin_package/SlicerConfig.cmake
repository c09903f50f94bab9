# A stand-in for the Slicer that an extension is configured against: `cmake -DSlicer_DIR=<this folder>`.
# It is no Slicer. Like the real one it refuses lists that name files which don't exist, copies what is listed
# into the build tree, and installs that folder; it records what it was told in ${CMAKE_BINARY_DIR}/record.txt.

set(Slicer_FOUND TRUE)
set(Slicer_VERSION 5.10.0)
set(Slicer_USE_FILE ${CMAKE_CURRENT_LIST_DIR}/UseSlicer.cmake)
set(Slicer_EXTENSION_GENERATE_CONFIG ${CMAKE_CURRENT_LIST_DIR}/GenerateConfig.cmake)
set(Slicer_EXTENSION_CPACK ${CMAKE_CURRENT_LIST_DIR}/CPack.cmake)
set(Slicer_QTSCRIPTEDMODULES_LIB_DIR lib/Slicer-5.10/qt-scripted-modules)
set(Slicer_INSTALL_QTSCRIPTEDMODULES_LIB_DIR ${Slicer_QTSCRIPTEDMODULES_LIB_DIR})
