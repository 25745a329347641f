#!/bin/sh
# Compiles the engine for phones and for the simulator, and joins both as CMobileMoE.xcframework. Needs Xcode and CMake.
set -eu
cd "$(dirname "$0")"
rm -rf build CMobileMoE.xcframework
mkdir -p build/headers
cp ../../native/include/mobilemoe.h headers/module.modulemap build/headers
set --
for sdk in iphoneos iphonesimulator; do
  cmake -S ../.. -B build/$sdk -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=iOS -DCMAKE_SYSTEM_PROCESSOR=arm64 \
    -DCMAKE_OSX_SYSROOT=$sdk -DCMAKE_OSX_ARCHITECTURES=arm64 -DCMAKE_OSX_DEPLOYMENT_TARGET=16.0
  cmake --build build/$sdk --target mobilemoe_core --parallel
  set -- "$@" -library build/$sdk/libmobilemoe_core.a -headers build/headers
done
xcodebuild -create-xcframework "$@" -output CMobileMoE.xcframework
