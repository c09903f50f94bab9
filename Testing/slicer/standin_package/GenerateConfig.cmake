# A stand-in, see SlicerConfig.cmake: what describes an extension to those that depend on it.

standin_record(GENERATE_CONFIG ${EXTENSION_NAME})
