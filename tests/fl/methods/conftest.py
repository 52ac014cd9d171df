"""What tests of methods share."""

import pytest

from bflnode.fl.inference import repeatable_torch


@pytest.fixture(autouse=True)
def repeatable() -> object:
    with repeatable_torch(1):
        yield
