"""Options and hypothesis profiles of the test suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis

if TYPE_CHECKING:
    import pytest


CASES = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases",
        type=int,
        default=CASES,
        help=f"random graphs a property is tried on ({CASES}; 2000 before a release)",
    )


def pytest_configure(config: pytest.Config) -> None:
    common = {
        "deadline": None,
        "suppress_health_check": list(hypothesis.HealthCheck),
        "print_blob": True,
    }
    cases = config.getoption("--cases")
    # The suite tries the same graphs every time, so that it says something about the change; `--cases` and tests.hunt look
    # for new ones.
    same = cases == CASES
    hypothesis.settings.register_profile(
        "graphs", max_examples=cases, derandomize=same, **common
    )
    hypothesis.settings.load_profile("graphs")
