"""What every test of a refusal asks of the error."""

from contextlib import contextmanager

import pytest

from janus_core.errors import JanusError
from tests.fuzz.case import message_problem


@contextmanager
def one_sentence(*words, error: type[JanusError] = JanusError):
    """Asserts that the block raises `error` with a message of one clear line that has all of these words."""
    with pytest.raises(error) as raised:
        yield
    message = str(raised.value)
    assert message_problem(message) is None, message
    assert all(word in message for word in words), message
