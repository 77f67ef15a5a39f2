"""Sends models and inputs to a device, once by content, and makes sure that they fit."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit.profile.memory import save_inputs
from deploykit.profile.remote import failures
from deploykit.profile.remote.connection import NoSpace

if TYPE_CHECKING:
    from deploykit.profile.remote.address import Host, Tell
    from deploykit.profile.remote.connection import Connection
    from deploykit.profile.remote.shipment import Shipment

__all__ = ["SPARE_BYTES", "Sender"]

Feeds: TypeAlias = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

SPARE_BYTES = 4 << 20
"""Room for samples, besides the models."""


class Sender:
    """Knows what of a run is on its device already.

    Args:
        host: the device, and how it is used.
        link: the connection to it.
        folder: the workspace of the run there.
        store: where models are kept there that stay.
        token: what tells this run from others there.
        tell: told what goes there, and how far it is.
    """

    def __init__(
        self, host: Host, link: Connection, *, folder: str, store: str, token: str, tell: Tell
    ) -> None:
        self._host = host
        self._link = link
        self._folder = folder
        self._store = store
        self._token = token
        self._tell = tell
        self._sent: set[str] = set()

    def models(self, paths: Sequence[Path], packed: Sequence[Shipment]) -> list[str]:
        """Send the models that are not there yet; where each lies."""
        link = self._link
        root = f"{self._folder}/models"
        if self._host.keeps_models:
            root = self._store
        places = {each.sha256: f"{root}/{each.sha256[:32]}" for each in packed}
        absent = {
            each.sha256: (path, each)
            for path, each in zip(paths, packed, strict=True)
            if each.sha256 not in self._sent
        }
        if self._host.keeps_models:
            absent = {
                key: (path, each)
                for key, (path, each) in absent.items()
                if not self._is_whole(places[key], each)
            }
        total = sum(each.bytes for _, each in absent.values())
        if total:
            self._make_room(total, keep=set(places))
        stage = (
            f"sending {_count(len(absent), 'model')} to {self._host.name}, {total / 1e6:.1f} MB"
        )
        done = 0
        for key, (path, each) in absent.items():
            # A folder gets its name when it is whole.
            part = f"{places[key]}.{self._token}"
            link.make_folder(part)
            for name, file in each.files:
                if "/" in name:
                    link.make_folder(f"{part}/{name.rpartition('/')[0]}")

                def told(more: int, before: int = done) -> None:
                    self._tell(stage, (before + more) / max(total, 1))

                told(0)
                try:
                    link.send(file, f"{part}/{name}", told)
                except NoSpace as error:
                    raise failures.no_space(
                        self._host, str(path), total - done, self.free_bytes(), str(error)
                    ) from error
                done += file.stat().st_size
            if self._host.keeps_models:
                # One that was not whole would be in the way.
                link.remove_tree(places[key])
            link.rename(part, places[key])
        self._sent.update(places)
        return [f"{places[each.sha256]}/{each.files[0][0]}" for each in packed]

    def _is_whole(self, place: str, shipment: Shipment) -> bool:
        """Whether a kept model is there with all its files, each as large as it should be."""
        found: dict[str, dict[str, int]] = {}
        for name, file in shipment.files:
            folder, _, last = name.rpartition("/")
            where = f"{place}/{folder}" if folder else place
            if where not in found:
                found[where] = self._link.sizes(where)
            if found[where].get(last) != file.stat().st_size:
                return False
        return True

    def _make_room(self, needed: int, *, keep: set[str]) -> None:
        """Make sure that models fit; those of this run that are not needed now make way.

        Raises:
            RuntimeUnavailable: they do not fit.
        """
        needed += SPARE_BYTES
        free = self.free_bytes()
        if free is None or free >= needed:
            return
        if not self._host.keeps_models:
            for key in self._sent - keep:
                self._link.remove_tree(f"{self._folder}/models/{key[:32]}")
            self._sent &= keep
            free = self.free_bytes()
        if free is not None and free < needed:
            raise failures.no_space(self._host, "the models", needed, free)

    def free_bytes(self) -> int | None:
        """Bytes that may still be written there; None if the device does not tell."""
        return self._link.free_bytes(self._folder)

    def inputs(self, feeds: Feeds) -> str:
        """Send the inputs, unless they are there; where they lie."""
        with tempfile.TemporaryDirectory(prefix="deploykit-inputs-") as folder:
            file = Path(folder) / "inputs.npz"
            save_inputs(file, feeds)
            data = file.read_bytes()
        name = _hash(data)
        place = f"{self._folder}/inputs/{name}.npz"
        if name not in self._sent:
            try:
                self._link.send(data, place)
            except NoSpace as error:
                raise failures.no_space(
                    self._host, "the inputs", len(data), self.free_bytes(), str(error)
                ) from error
            self._sent.add(name)
        return place


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
