import pytest

import mobilemoe
from servers import running


@pytest.fixture(scope="module")
def nano():
    """The model of the servers, asked here without one."""
    return mobilemoe.load("nano", threads=1)


@pytest.fixture(scope="module")
def server(request):
    """A server of nano, with the SERVER_OPTIONS of the module that asks for one."""
    with running(*getattr(request.module, "SERVER_OPTIONS", ())) as server:
        yield server
