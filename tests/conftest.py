"""Options and hypothesis profiles of the test suite."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases",
        type=int,
        default=60,
        help="random graphs a property is tried on (60; 2000 before a release)",
    )


def pytest_configure(config: pytest.Config) -> None:
    common = {
        "deadline": None,
        "suppress_health_check": list(hypothesis.HealthCheck),
        "print_blob": True,
    }
    cases = config.getoption("--cases")
    hypothesis.settings.register_profile("graphs", max_examples=cases, **common)
    hypothesis.settings.load_profile("graphs")
