"""The phone apps' sources, as far as they can be checked without the NDK, the Android SDK and Xcode: they parse, they
call what the C API has, and the engine compiles for Apple's systems."""

import os
import re
import shutil
import sys

import pytest

from commands import run
from places import ROOT

EXAMPLES = ROOT / "examples"
KOTLIN = sorted([*EXAMPLES.glob("android/**/*.kt"), *EXAMPLES.glob("android/**/*.kts")])
SWIFT = sorted(EXAMPLES.glob("ios/**/*.swift"))
HEADER = ROOT / "native" / "include" / "mobilemoe.h"
NATIVE = ROOT / "native" / "src"
# What differs between systems, and the kernels of Arm.
SYSTEMS = [
    "api/engine.cpp",
    "threads/cores.cpp",
    "kernels/dispatch.cpp",
    "kernels/neon/neon.cpp",
    "kernels/neon/neon_i8mm.cpp",
    "files/checkpoint.cpp",
]


def faults(node):
    """Where a parsed text is not of its language."""
    if node.type == "ERROR" or node.is_missing:
        yield node.start_point
    for child in node.children:
        yield from faults(child)


@pytest.mark.parametrize("path", [*KOTLIN, *SWIFT], ids=lambda path: path.name)
def test_a_source_parses(path):
    tree_sitter = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_swift" if path.suffix == ".swift" else "tree_sitter_kotlin")
    parser = tree_sitter.Parser(tree_sitter.Language(grammar.language()))
    assert [*faults(parser.parse(path.read_bytes()).root_node)] == []
    assert [*faults(parser.parse(path.read_bytes() + b"\n}").root_node)] != []


def test_swift_names_only_what_the_c_api_has():
    named = {name for path in SWIFT for name in re.findall(r"\b(?:mm|MM)_\w+", path.read_text())}
    assert len(named) > 10
    assert named <= set(re.findall(r"\w+", HEADER.read_text()))


def test_the_engine_compiles_for_apples_systems(tmp_path):
    pytest.importorskip("ziglang")
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-macos", "-mcpu=apple_a15", "-std=c++17", "-O0"]
    for source in SYSTEMS:
        run(
            *zig,
            '-DMOBILEMOE_VERSION="0"',
            f"-I{HEADER.parent}",
            f"-I{NATIVE}",
            "-c",
            NATIVE / source,
            "-o",
            tmp_path / "o",
        )
        assert (tmp_path / "o").read_bytes()[:4] == b"\xcf\xfa\xed\xfe"  # Mach-O of 64 bits


@pytest.mark.parametrize("source", SYSTEMS)
def test_the_engine_compiles_against_androids_c_library(source, tmp_path):
    sysroot, clang = os.environ.get("ANDROID_SYSROOT"), shutil.which(os.environ.get("CLANG", "clang++"))
    if not sysroot or clang is None:
        pytest.skip("ANDROID_SYSROOT is not set to the NDK's toolchains/llvm/prebuilt/*/sysroot, or there is no Clang")
    android = ["--target=aarch64-linux-android26", f"--sysroot={sysroot}", "-stdlib=libc++", "-std=c++17"]
    arm = "-march=armv8.2-a+dotprod+fp16" + ("+i8mm" if "i8mm" in source else "")
    folders = [f"-I{HEADER.parent}", f"-I{NATIVE}"]
    run(clang, *android, arm, '-DMOBILEMOE_VERSION="0"', *folders, "-c", NATIVE / source, "-o", tmp_path / "o")
    assert (tmp_path / "o").read_bytes()[:4] == b"\x7fELF"
