"""The sentence with which a call is refused."""

import pytest

from mobilemoe.errors import UsageError


def refusal(call, kind=UsageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text
