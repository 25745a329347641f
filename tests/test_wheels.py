"""The wheels in dist/ run alone, without a compiler and without PyTorch. `make test-wheels` builds and tests them."""

import os
import platform
import shutil
import struct
import subprocess
import sys
import zipfile

import pytest

from places import ROOT

pytestmark = pytest.mark.wheels

DIST = ROOT / "dist"
PAGE = ROOT / "src" / "mobilemoe" / "serve" / "assets"
CONTINUED = ["run", "nano", "The old man looked at the sea and", "--max-new-tokens", "8"]


def wheels():
    found = sorted(DIST.glob("mobilemoe-*.whl"))
    assert found, "run `make wheel` first"
    return found


def wheel_for(version):
    tags = "cp311-cp311" if version == "3.11" else "cp312-abi3"
    (found,) = [path for path in wheels() if path.stem.endswith(f"-{tags}-manylinux_2_17_{platform.machine()}")]
    return found


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def interpreter(version):
    python = f"python{version}"
    if shutil.which(python) is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"{python} is not installed")
    return python


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Gives the folder of an environment's programs, with nothing in it but the wheel and what it asks for."""
    made = {}

    def install(version):
        if version not in made:
            environment = tmp_path_factory.mktemp(f"python{version}")
            run(interpreter(version), "-m", "venv", "--without-pip", environment)
            pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
            no_compiler = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
            run(*pip, "install", "--only-binary", ":all:", wheel_for(version), env=no_compiler)
            made[version] = environment / "bin"
        return made[version]

    return install


def alone(programs):
    """Variables that show a program nothing but those of its own environment."""
    return {"PATH": str(programs), "HOME": str(programs.parent)}


def test_every_platform_has_a_wheel_for_python_3_11_and_one_for_all_later_versions():
    tags = {path.stem.split("-", 2)[2] for path in wheels()}
    linux = {f"{python}-manylinux_2_17_" for python in ["cp311-cp311", "cp312-abi3"]}
    macos = {"cp312-abi3-macosx_11_0_arm64"}
    assert tags == {tag + machine for tag in linux for machine in ["x86_64", "aarch64"]} | macos


def test_a_wheel_has_one_module_nano_and_at_most_45_megabytes():
    for path in wheels():
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        assert len([name for name in names if name.endswith(".so")]) == 1
        assert "mobilemoe/assets/nano/model.safetensors" in names
        assert any(name.endswith(".data/data/share/man/man1/mobilemoe.1") for name in names)
        assert {f"mobilemoe/serve/assets/{file.name}" for file in PAGE.iterdir()} <= set(names)
        assert path.stat().st_size <= 45_000_000


def test_on_linux_a_module_needs_no_library_but_an_old_libc():
    for path in wheels():
        if "linux" not in path.name:
            continue
        machine = path.stem.rsplit("2_17_")[1]
        shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", path).split())
        assert f'is consistent with the following platform tag: "manylinux_2_17_{machine}"' in shown
        assert "libstdc++" not in shown


def test_on_macos_a_module_is_for_arm_and_signed():
    """More cannot be checked where there is no Mac: unsigned code does not start there."""
    (path,) = [path for path in wheels() if "macosx" in path.name]
    with zipfile.ZipFile(path) as archive:
        module = archive.read("mobilemoe/engine/_native.abi3.so")
    magic, processor, _, kind, commands = struct.unpack_from("<5I", module)
    assert (magic, processor, kind) == (0xFEEDFACF, 0x0100000C, 6)  # a 64-bit Mach-O file, arm64, a dynamic library
    found, place = set(), 32
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", module, place)
        found.add(command)
        place += size
    assert 0x1D in found  # LC_CODE_SIGNATURE


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_nano_runs_in_an_empty_environment(installed, version):
    programs = installed(version)
    assert "torch" not in run(sys.executable, "-m", "pip", "--python", programs / "python", "list")
    command = programs / "mobilemoe"
    text = run(command, *CONTINUED, env=alone(programs))
    assert text == run(sys.executable, "-m", "mobilemoe", *CONTINUED)
    assert "Ada" in run(command, "chat", "nano", env=alone(programs), input="Hi, my name is Ada.\n")


def test_nano_runs_on_a_processor_of_2008(installed):
    """One of those without AVX, but with what NumPy asks for."""
    emulator = [shutil.which("qemu-x86_64-static"), "-cpu", "Nehalem"]
    if emulator[0] is None:
        pytest.skip("qemu-x86_64-static is not installed (Debian: qemu-user-static)")
    programs = installed("3.11")
    command = [programs / "python", "-m", "mobilemoe", *CONTINUED]
    assert run(*emulator, *command, env=alone(programs)) == run(*command, env=alone(programs))
