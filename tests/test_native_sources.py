"""What the engine's library does not use, since it must live inside any host program."""

import re
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "native" / "src"


@pytest.mark.skipif(not SOURCES.is_dir(), reason="the sources are not here")
def test_the_library_uses_no_streams_and_no_cpp_locale():
    """Where the C++ library is linked statically into one module of a process, streams crash at the first number."""
    files = [*SOURCES.rglob("*.cpp"), *SOURCES.rglob("*.h")]
    assert len(files) > 50
    header = re.compile(r"#include <(sstream|fstream|iostream|istream|ostream|locale|regex|iomanip)>")
    assert [path.name for path in files if header.search(path.read_text())] == []
