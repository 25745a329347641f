# Cross-compiles with the ziglang wheel of the Python that runs CMake's build tools: static, against musl.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
get_filename_component(python "${CMAKE_CURRENT_LIST_DIR}/../.venv/bin/python" ABSOLUTE)
set(CMAKE_CXX_COMPILER ${python} -m ziglang c++ -target aarch64-linux-musl)
