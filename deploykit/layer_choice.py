"""Chooses the form of each layer with dense blocks by measuring it alone, in all forms that fit, on the device.

Layers that are alike in everything that takes time are measured once. The layer as it is stays unless a form is proven faster
by 2 %; of several forms the simplest stays unless another is proven faster by as much.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import DeploykitError
from deploykit.profile import HERE, Place, Settings, measure
from deploykit.profile.statistics import adds_enough
from deploykit.runtimes import DEFAULT

if TYPE_CHECKING:
    from deploykit.profile import Measurement, Ratio
    from deploykit.runtimes import Runner
    from passes.lowerings.alone import Case
    from passes.planners.block_choice import Chosen

__all__ = ["LAYER", "LayerChooser"]

LAYER = Settings(warmup_s=0.02, duration_s=0.25, min_rounds=12, rebuilds=2, max_duration_s=10.0)
"""How long a layer is measured: a network has some dozens, and what is chosen is measured again as a whole."""


@dataclasses.dataclass
class LayerChooser:
    """Measures layers; remembers what it has measured.

    Attributes:
        threads: of the sessions.
        settings: how long each layer is measured.
        progress: told what is going on, and how far it is.
        known: what was chosen, by the key of the layer; grows.
        runner: what runs the layers on this machine; None is ONNX Runtime.
        place: where they are measured.
        runtime: what runs them elsewhere.
    """

    threads: int = 1
    settings: Settings = LAYER
    progress: Callable[[str, float | None], None] | None = None
    known: dict[str, Chosen] = dataclasses.field(default_factory=dict)
    runner: Runner | None = None
    place: Place = HERE
    runtime: str = DEFAULT

    def __call__(self, cases: Sequence[Case]) -> list[Chosen]:
        """The form of each layer."""
        missing = {case.key: case for case in cases if case.key not in self.known}
        stage = f"measuring {len(missing)} kinds of layers with blocks"
        for number, (key, case) in enumerate(missing.items()):
            self._tell(stage, number / len(missing))
            self.known[key] = self._choose(case)
        if missing:
            self._tell(stage, 1.0)
        return [self.known[case.key] for case in cases]

    def _tell(self, stage: str, done: float) -> None:
        if self.progress is not None:
            self.progress(stage, done)

    def _choose(self, case: Case) -> Chosen:
        """Measure one layer in all its forms."""
        import onnx_ir as ir

        from passes.lowerings import DENSE
        from passes.planners.block_choice import Chosen

        with tempfile.TemporaryDirectory(prefix="deploykit-layer-") as folder:
            paths = {}
            for name in case.names:
                paths[name] = Path(folder) / f"{name}.onnx"
                ir.save(case.build(name), paths[name])
            try:
                measured = measure(
                    paths,
                    case.feeds(),
                    baseline=DENSE,
                    threads=self.threads,
                    settings=self.settings,
                    runner=self.runner,
                    place=self.place,
                    runtime=self.runtime,
                )
            except DeploykitError as error:
                return Chosen(DENSE, f"its forms could not be measured: {error}", "")
        return self._decide(case.names, measured)

    def _decide(self, names: Sequence[str], measured: Measurement) -> Chosen:
        from passes.lowerings import DENSE
        from passes.planners.block_choice import Chosen

        best = DENSE
        for name in names[1:]:
            if adds_enough(measured.ratio(name, best)):
                best = name
        if best != DENSE:
            return Chosen(best, f"{_said(measured.ratios[best])} of the dense time")
        nearest = min(names[1:], key=lambda name: measured.ratios[name].median)
        return Chosen(
            DENSE,
            f"the fastest form, {nearest}, takes {_said(measured.ratios[nearest])} of the dense time",
            "make larger blocks, or cut channels: copying what blocks read costs more than they save",
        )


def _said(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} [{ratio.lo:.2f}, {ratio.hi:.2f}]"
