# Cross-compiles with the ziglang wheel in .venv: static, against musl.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
get_filename_component(python "${CMAKE_CURRENT_LIST_DIR}/../.venv/bin/python" ABSOLUTE)
set(CMAKE_CXX_COMPILER ${python} -m ziglang c++ -target aarch64-linux-musl)
set(MOBILEMOE_NEON -mcpu=generic+v8_2a+dotprod+fullfp16)  # zig takes no -march
