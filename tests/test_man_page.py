"""The manual page has every verb and every option as the command has them, and a reader of such pages takes it."""

import shutil
import subprocess
import sys

import pytest

from mobilemoe.cli.main import app
from places import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import man_page

VERBS = dict(man_page.verbs())


@pytest.fixture(scope="module")
def sections():
    """The page by headings, without what roff needs."""
    text = man_page.page().replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")
    return {part.split("\n", 1)[0]: part for part in text.split(".SH ")}


def test_every_verb_has_a_section():
    names = {command.name for command in app.registered_commands}
    names |= {
        f"{group.name} {command.name}"
        for group in app.registered_groups
        for command in group.typer_instance.registered_commands
    }
    assert set(VERBS) == names


@pytest.mark.parametrize("verb", VERBS)
def test_the_section_of_a_verb_has_what_its_help_has(verb, sections):
    section = sections[verb.upper()]
    for parameter in VERBS[verb].params:
        for option in parameter.opts if parameter.param_type_name == "option" else []:
            assert option in section
        if parameter.help:
            assert parameter.help.split("`")[0].split("'")[0] in section.replace("\\(ti", "~")
    assert f"Example: mobilemoe {verb}" in section


def test_readers_of_manual_pages_take_it(tmp_path):
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    path = tmp_path / "mobilemoe.1"
    subprocess.run([sys.executable, ROOT / "tools" / "man_page.py", path], check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run(["groff", "-man", "-ww", "-Kutf8", "-Tutf8", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mobilemoe - Plan" in " ".join(done.stdout.split()).replace("\b", "")
