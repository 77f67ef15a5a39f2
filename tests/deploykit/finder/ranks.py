"""One of several processes of a search: `torchrun ... -m tests.deploykit.finder.ranks FOLDER`.

Each writes the ticket that it came to, as FOLDER/rank-N.safetensors, and a training with normalizations and dropout.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from deploykit.finder import search as searching
from deploykit.finder.engine import make_engine
from deploykit.finder.search import Settings, search
from deploykit.finder.training import Trainer
from deploykit.ticket import Ticket
from tests.deploykit.finder.toy import lenet, pictures


def main(folder):
    torch.set_num_threads(1)
    engine = make_engine("auto")
    found, find = [], searching._Search._find

    def note(self):
        found.append(find(self))
        return found[-1]

    searching._Search._find = note
    search(lenet, Settings(rounds=2, rewind=1), folder / "out", engine=engine)
    # Started again by all of them, it is read by the first and told to the others.
    search(lenet, Settings(rounds=2, rewind=1), folder / "out", engine=engine)
    for number, ticket in enumerate(found):
        ticket.save(folder / f"rank-{engine.rank}-{number}.safetensors")
    trainer = Trainer(pictures, engine=engine, epochs=1)
    trained = trainer.train(trainer.initial(), {})
    provenance = {"name": engine.name, "processes": engine.processes, "test": trained.test}
    Ticket({}, trained.weights, {}, provenance).save(
        folder / f"pictures-{engine.rank}.safetensors"
    )
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
