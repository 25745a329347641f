"""An engine file's pages come in blocks that the processor can map as one."""

import mmap
import re

import pytest

from mobilemoe.engine import _native as native
from mobilemoe.hub import ASSETS

BLOCK = 2 << 20


def _huge_bytes(path) -> int:
    """How many bytes of the file are mapped as huge pages when all of it has been read."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for at in range(0, len(mapped), mmap.PAGESIZE):
            mapped[at]
        with open("/proc/self/smaps") as maps:
            text = maps.read()
    a_mapping = r"^[0-9a-f]+-[0-9a-f]+ .* (\S+)\n(?:\w+:.*\n)*?FilePmdMapped: *(\d+) kB"
    return sum(1024 * int(size) for name, size in re.findall(a_mapping, text, re.M) if name == str(path))


def test_an_engine_file_is_kept_in_huge_pages_where_the_system_has_them(tmp_path):
    control = tmp_path / "control"
    with open(control, "wb", buffering=0) as file:
        for _ in range(8):
            file.write(bytes(BLOCK))
    try:
        if _huge_bytes(control) < 8 * BLOCK:
            pytest.skip("this system or file system has no huge pages for files")
    except OSError:
        pytest.skip("this system does not say how pages are mapped")

    path = tmp_path / "nano.mobilemoe"
    native.repack(str(ASSETS / "nano"), str(path))

    assert _huge_bytes(path) >= path.stat().st_size // BLOCK * BLOCK
