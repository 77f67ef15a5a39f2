"""One thread: two on a busy machine are many times slower, and sums are the same every time."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    if torch:
        torch.set_num_threads(1)
    yield
    if torch:
        torch.set_num_threads(before)
