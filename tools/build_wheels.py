"""Builds the wheels into dist/: for every platform one for Python 3.11, and one for 3.12 and all that come later.

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
MACHINES = ["x86_64", "aarch64"]
GLIBC = "2.17"  # the oldest that the wheels run with, of 2012
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


def build(python: Path, version: tuple[int, int], machine: str) -> None:
    """Puts one wheel into dist/. Its tag claims the old libc that zig was told; `make test-wheels` checks the claim."""
    settings = {
        "build-dir": BUILD / "{}-{}.{}".format(machine, *version),
        "cmake.define.CMAKE_TOOLCHAIN_FILE": ROOT / "native" / "zig.cmake",
        "cmake.define.ZIG_TARGET": f"{machine}-linux-gnu.{GLIBC}",
    }
    pip(
        python,
        *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", DIST, ROOT),
        *(f"--config-settings={name}={value}" for name, value in settings.items()),
        _PYTHON_HOST_PLATFORM=f"linux-{machine}",
        SETUPTOOLS_EXT_SUFFIX=".cpython-{}{}-{}-linux-gnu.so".format(*version, machine),
    )
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    (made,) = DIST.glob(f"*-linux_{machine}.whl")
    command = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, made]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    versions = {version: python for python in sys.argv[1:] if (version := version_of(python))}
    newer = [version for version in versions if version >= (3, 12)]
    if (3, 11) not in versions or not newer:
        sys.exit("the wheels need Python 3.11 and one that is newer: make wheel WHEEL_PYTHONS='python3.11 python3.13'")
    for old in DIST.glob("*.whl"):
        old.unlink()
    for version in [(3, 11), newer[0]]:
        python = with_build_tools(versions[version], version)
        for machine in MACHINES:
            build(python, version, machine)
    for wheel in sorted(DIST.glob("*.whl")):
        print(f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
