"""One of several processes of a search: `torchrun ... -m tests.deploykit.finder.ranks FOLDER`.

Each writes the tickets that it came to, as FOLDER/rank-N.safetensors and FOLDER/masked-N.safetensors, and a training with
normalizations and dropout.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from deploykit.finder import search as searching
from deploykit.finder.engine import make_engine
from deploykit.finder.nm import NM
from deploykit.finder.search import Settings, search
from deploykit.finder.training import Trainer
from deploykit.ticket import Ticket
from tests.deploykit.finder.toy import lenet, pictures


def main(folder):
    torch.set_num_threads(1)
    engine = make_engine("auto")
    found = []
    for kind in (searching._Search, searching.NMSearch):

        def note(self, find=kind._find):
            found.append(find(self))
            return found[-1]

        kind._find = note
    search(lenet, Settings(rounds=2, rewind=1), folder / "out", engine=engine)
    # Started again by all of them, it is read by the first and told to the others.
    search(lenet, Settings(rounds=2, rewind=1), folder / "out", engine=engine)
    for number, ticket in enumerate(found):
        ticket.save(folder / f"rank-{engine.rank}-{number}.safetensors")
    settings = Settings(source="sr-ste", nm=NM(decay=0.01, permute=False))
    masked = search(lenet, settings, folder / "masked", engine=engine)
    # Written by the first alone; each has its own in memory.
    found[-1].save(folder / f"masked-{engine.rank}.safetensors")
    assert masked.rows[-1].sad is not None
    trainer = Trainer(pictures, engine=engine, epochs=1)
    trained = trainer.train(trainer.initial(), {})
    provenance = {"name": engine.name, "processes": engine.processes, "test": trained.test}
    Ticket({}, trained.weights, {}, provenance).save(
        folder / f"pictures-{engine.rank}.safetensors"
    )
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
