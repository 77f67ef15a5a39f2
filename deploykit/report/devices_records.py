"""What several devices say of the same models, as frozen data; its JSON form is the published `devices.schema.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

from deploykit.report.profile_records import ProfileReport, join_numbers, to_document

__all__ = ["SCHEMA_VERSION", "DeviceProfile", "DevicesReport", "schema", "to_json"]

SCHEMA_VERSION = "1.0"


@dataclasses.dataclass(frozen=True)
class DeviceProfile:
    """What came of one device: a profile, or why there is none.

    Attributes:
        name: what the user calls the device.
        profile: what was measured there; None if nothing was.
        error: why not, in words; None if it was.
        exit_code: that of the error; 0 without one.
    """

    name: str
    profile: ProfileReport | None
    error: str | None = None
    exit_code: int = 0


@dataclasses.dataclass(frozen=True)
class DevicesReport:
    """Models measured on several devices.

    Attributes:
        command: the command line.
        versions: versions of deploykit and of the libraries it used here.
        devices: what came of each, in the order in which they were named.
        elapsed_s: seconds it all took.
    """

    command: str
    versions: Mapping[str, str]
    devices: tuple[DeviceProfile, ...]
    elapsed_s: float
    kind: Literal["devices"] = "devices"
    schema_version: str = SCHEMA_VERSION

    @property
    def exit_code(self) -> int:
        """0 if every device was measured, else that of the first which was not."""
        return next((each.exit_code for each in self.devices if each.exit_code), 0)


def to_json(report: DevicesReport) -> str:
    """The report as a JSON document, ending in a newline; each list of samples is one line."""
    document = {
        "schema_version": report.schema_version,
        "kind": report.kind,
        "command": report.command,
        "versions": dict(report.versions),
        "devices": [
            {
                "name": each.name,
                "error": each.error,
                "exit_code": each.exit_code,
                "profile": None if each.profile is None else to_document(each.profile),
            }
            for each in report.devices
        ],
        "elapsed_s": report.elapsed_s,
    }
    text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
    return join_numbers(text) + "\n"


def schema() -> dict[str, Any]:
    """The JSON schema of the document; each profile in it is one of `profile.schema.json`."""
    folder = resources.files("deploykit.report")
    loaded: dict[str, Any] = json.loads(
        folder.joinpath("devices.schema.json").read_text("utf-8")
    )
    return loaded
