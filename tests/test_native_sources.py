"""Who includes whom in the engine's sources, and what they do not use, since they must live inside any host program."""

import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from places import ROOT

SOURCES = ROOT / "native" / "src"
pytestmark = pytest.mark.skipif(not SOURCES.is_dir(), reason="the sources are not here")

# What a folder may include besides itself and the error that all may throw, the lowest first. Of `compute`, `files` may
# include only what a session file holds; of `kernels`, no other folder may include those of one instruction set.
RULES = {
    "model": set(),
    "threads": set(),
    "kernels": {"model"},
    "compute": {"model", "threads", "kernels"},
    "files": {"model", "threads", "compute/sequence.h"},
    "api": {"model", "threads", "kernels", "compute", "files"},
}
INSTRUCTION_SETS = {"amx": {"avx512", "vector"}, "avx2": {"vector"}, "avx512": {"vector"}, "neon": {"vector"}}


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE)


def sources() -> list[Path]:
    return sorted(path for path in SOURCES.rglob("*") if path.suffix in {".h", ".cpp"})


def name_of(path: Path) -> str:
    return path.relative_to(SOURCES).as_posix()


def folder_of(name: str) -> str:
    return name.split("/")[0] if "/" in name else ""


def circles(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_each_folder_includes_only_those_below_it():
    def allowed(name: str, included: str) -> bool:
        folder, other = folder_of(name), folder_of(included)
        if folder == other or included in {"error.h", *RULES[folder]}:
            return True
        return other in RULES[folder] and included.count("/") == 1

    found = [(name_of(path), name) for path in sources() for name in includes(path) if name != "mobilemoe.h"]
    assert len(found) > 100
    assert [pair for pair in found if not allowed(*pair)] == []
    order = list(RULES)
    assert all(order.index(rule.split("/")[0]) < order.index(folder) for folder in order for rule in RULES[folder])


def test_an_instruction_set_includes_no_other():
    """Each is compiled with its own flags: what it shared with another would run where it must not."""
    for name, others in INSTRUCTION_SETS.items():
        for path in (SOURCES / "kernels" / name).iterdir():
            folders = {included.split("/")[1] for included in includes(path) if included.count("/") == 2}
            assert folders <= {name, *others}, path.name
            assert "kernels/half.h" not in includes(path), path.name


def test_no_header_and_no_source_beside_it_include_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for path in sources():
        unit = name_of(path.with_suffix(""))
        graph.setdefault(unit, set()).update(name.removesuffix(".h") for name in includes(path))
        graph[unit].discard(unit)
    assert len(graph) > 50
    assert circles(graph) == []


def test_every_include_is_written_from_the_top_and_is_there():
    known = {name_of(path) for path in sources()} | {"mobilemoe.h"}
    assert [(name_of(path), name) for path in sources() for name in includes(path) if name not in known] == []


def test_a_source_begins_with_its_own_header():
    """So a function is declared in the header of the file that defines it, and the header stands by itself."""
    headers = {name_of(path) for path in sources() if path.suffix == ".h"}
    with_header = [path for path in sources() if path.suffix == ".cpp" and name_of(path.with_suffix(".h")) in headers]
    assert len(with_header) > 15
    for path in with_header:
        assert includes(path)[0] == name_of(path.with_suffix(".h"))


def test_the_library_uses_no_streams_and_no_cpp_locale():
    """Where the C++ library is linked statically into one module of a process, streams crash at the first number."""
    header = re.compile(r"#include <(sstream|fstream|iostream|istream|ostream|locale|regex|iomanip)>")
    assert len(sources()) > 50
    assert [name_of(path) for path in sources() if header.search(path.read_text())] == []
