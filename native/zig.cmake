# Cross-compiles with the ziglang wheel in .venv for -DZIG_TARGET, for example x86_64-linux-gnu.2.17, aarch64-linux-musl
# or aarch64-macos.12.0. The C++ library is linked in, and a target that is named never means "this processor".
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG_TARGET)
string(REGEX MATCH "^([^-]+)-([^-]+)" machine "${ZIG_TARGET}")
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
if(CMAKE_MATCH_2 MATCHES "^macos")
  set(CMAKE_SYSTEM_NAME Darwin)
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()
get_filename_component(python "${CMAKE_CURRENT_LIST_DIR}/../.venv/bin/python" ABSOLUTE)
set(CMAKE_CXX_ARCHIVE_CREATE "${python} -m ziglang ar qcs <TARGET> <OBJECTS>")  # in the target's own format
set(CMAKE_CXX_ARCHIVE_FINISH "")
set(CMAKE_CXX_COMPILER ${python} -m ziglang c++ -target ${ZIG_TARGET})
set(MOBILEMOE_NEON -mcpu=generic+v8_2a+dotprod+fullfp16)  # zig takes no -march
