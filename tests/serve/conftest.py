import pytest

import mobilemoe


@pytest.fixture(scope="module")
def nano():
    """The model of the servers, asked here without one."""
    return mobilemoe.load("nano", threads=1)
