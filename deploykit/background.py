"""Work that goes on in a thread of its own until somebody asks for what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Later"]

Result = TypeVar("Result")


class Later(Generic[Result]):
    """The result of a function that runs in the background from now on.

    Args:
        function: what to do.
        may_be_abandoned: whether the process may end while it runs. Not what calls a native library that must not
            be torn down under it.
    """

    def __init__(self, function: Callable[[], Result], *, may_be_abandoned: bool) -> None:
        self._function = function
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=may_be_abandoned)
        self._thread.start()

    def result(self) -> Result:
        """Wait for the result; raises what the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            self._results.append(self._function())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            self._error = error
