import pytest

from servers import running


@pytest.fixture(scope="module")
def server():
    """A server whose page asks for no key."""
    with running(key=None) as server:
        yield server
