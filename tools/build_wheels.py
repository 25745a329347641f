"""Builds the wheels into dist/: for Linux one for Python 3.11, and one for 3.12 and all that come later; for macOS the
second only.

`make wheel` runs it with the interpreters whose headers are used, of which 3.11 and any newer one must be there. zig
compiles for all platforms (native/zig.cmake) and links its C++ library in, so that a wheel needs nothing but libc.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
BUILD = ROOT / "build" / "wheels"
MAN_PAGE = BUILD / "mobilemoe.1"
# The platform in a wheel's name, and what Python and zig call it. glibc 2.17 is of 2012, macOS 11 the first for Arm.
LINUX = {
    "manylinux_2_17_x86_64": ("linux-x86_64", "x86_64-linux-gnu.2.17"),
    "manylinux_2_17_aarch64": ("linux-aarch64", "aarch64-linux-gnu.2.17"),
}
MACOS = {"macosx_11_0_arm64": ("macosx-11.0-arm64", "aarch64-macos.11.0")}
BUILD_TOOLS = ["cmake", "nanobind", "ninja", "scikit-build-core"]


def version_of(python: str) -> tuple[int, int] | None:
    """The version of an interpreter, or None if there is none that runs."""
    asked = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    if shutil.which(python) is None:
        return None
    answer = subprocess.run(asked, capture_output=True, text=True)
    return None if answer.returncode else tuple(map(int, answer.stdout.split()))


def pip(python: Path, *arguments: object, **variables: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(list(map(str, command)), check=True, cwd=ROOT, env={**os.environ, **variables})


def with_build_tools(python: str, version: tuple[int, int]) -> Path:
    """The interpreter of a new virtual environment with what builds a wheel."""
    environment = BUILD / "python{}.{}".format(*version)
    subprocess.run([python, "-m", "venv", "--clear", "--without-pip", environment], check=True)
    inside = environment / "bin" / "python"
    pip(inside, "install", "--constraint", ROOT / "constraints.txt", *BUILD_TOOLS)
    return inside


def build(python: Path, tag: str, host: str, target: str) -> None:
    """Puts one wheel into dist/. That it runs with the libc in its tag, `make test-wheels` checks."""
    settings = {
        "build-dir": BUILD / f"{python.parent.parent.name}-{tag}",
        "cmake.define.CMAKE_TOOLCHAIN_FILE": ROOT / "native" / "zig.cmake",
        "cmake.define.ZIG_TARGET": target,
        "cmake.define.MOBILEMOE_MAN_PAGE": MAN_PAGE,
    }
    pip(
        python,
        *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", DIST, ROOT),
        *(f"--config-settings={name}={value}" for name, value in settings.items()),
        _PYTHON_HOST_PLATFORM=host,
        SETUPTOOLS_EXT_SUFFIX=f".cpython-311-{host.removeprefix('linux-')}-linux-gnu.so",  # unused by the stable ABI
    )
    for made in DIST.glob(f"*-{host.replace('-', '_')}.whl"):  # only Linux has two names for a platform
        command = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, made]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    versions = {version: python for python in sys.argv[1:] if (version := version_of(python))}
    newer = [version for version in versions if version >= (3, 12)]
    if (3, 11) not in versions or not newer:
        sys.exit("the wheels need Python 3.11 and one that is newer: make wheel WHEEL_PYTHONS='python3.11 python3.13'")
    for old in DIST.glob("*.whl"):
        old.unlink()
    subprocess.run([sys.executable, ROOT / "tools" / "man_page.py", MAN_PAGE], check=True, stdout=subprocess.DEVNULL)
    for version, platforms in [((3, 11), LINUX), (newer[0], LINUX | MACOS)]:
        python = with_build_tools(versions[version], version)
        for tag, (host, target) in platforms.items():
            build(python, tag, host, target)
    for wheel in sorted(DIST.glob("*.whl")):
        print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
