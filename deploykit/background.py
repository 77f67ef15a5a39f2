"""Work that goes on in a thread of its own until somebody asks for what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Later"]

Result = TypeVar("Result")


class Later(Generic[Result]):
    """The result of a function that runs in the background from now on; a context manager that leaves nothing running.

    Args:
        function: what to do. It gets a function that tells whether somebody still wants the result.
    """

    def __init__(self, function: Callable[[Callable[[], bool]], Result]) -> None:
        self._function = function
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._is_wanted = True
        # Python waits for no such thread when it ends.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def result(self) -> Result:
        """Wait for the result; raises what the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What calls a native library must not run while that is torn down.
        self._is_wanted = False
        self._thread.join()

    def _run(self) -> None:
        try:
            self._results.append(self._function(lambda: self._is_wanted))
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            self._error = error
