"""What the state of a machine did to a measurement, in words, and what to do about it next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from deploykit.profile.state.nvidia_smi import HEAT, POWER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.profile.state import State
    from deploykit.profile.state.during import Course, During
    from deploykit.profile.state.nvidia_smi import Gpu

__all__ = ["advise_on_state"]

HOT_C: Final = 85.0
"""Jetson modules slow down from 95 to 99 degrees on, a Raspberry Pi from 80 to 85, GPUs from 83 to 90: a sensor that is
there is near it."""

STEADY: Final = "performance"
"""The governor that keeps clocks high, whatever the load."""

SLOWER: Final = 0.95
"""Share of its highest clock below which a busy GPU is held back."""

MUCH_SWAP: Final = 64 << 20


def advise_on_state(course: Course) -> tuple[str, ...]:
    """Warnings about the state of a machine in the course of a measurement, each with what to do next."""
    before, during, after = course.before, course.during, course.after
    return (
        *_about_governors(before),
        *_about_power_mode(before),
        *_about_heat(before, during, after),
        *_about_gpus(before, during),
        *_about_supply(before, after),
        *_about_memory(before, after),
    )


def _about_governors(before: State) -> Iterator[str]:
    """Cores of another kind may have a governor of their own; that of the first one is told with the device."""
    first = next((core.governor for core in before.cores if core.number == 0), None)
    others: dict[str, list[int]] = {}
    for core in before.cores:
        if core.is_online and core.governor not in {None, first, STEADY} and not core.is_fixed:
            others.setdefault(str(core.governor), []).append(core.number)
    if before.power_mode is None and before.is_clock_fixed is not True:
        for governor, numbers in others.items():
            listed = ",".join(map(str, numbers))
            yield (
                f"the clocks of the cores {listed} follow the load (governor '{governor}'): fix them with 'sudo cpupower -c "
                f"{listed} frequency-set -g {STEADY}' for figures that repeat"
            )


def _about_power_mode(before: State) -> Iterator[str]:
    mode = before.power_mode
    if mode is None:
        return
    if not mode.is_unlimited:
        fastest = before.fastest_mode
        command = f"sudo nvpmodel -m {0 if fastest is None else fastest.number}"
        name = "the mode without a limit" if fastest is None else fastest.name
        yield (
            f"the power mode is {mode.name}, which limits cores and clocks: for {name} run '{command}', or measure in the mode "
            "that the device will be used in"
        )
    if before.is_clock_fixed is False:
        yield "clocks follow the load: fix them with 'sudo jetson_clocks' for figures that repeat"


def _about_heat(before: State, during: During, after: State) -> Iterator[str]:
    counts = dict(during.throttled)
    for name, count in after.throttle_counts.items():
        more = count - before.throttle_counts.get(name, count)
        if more > 0:
            counts[name] = more
    for name, count in counts.items():
        if name.startswith("over-current"):
            yield (
                f"the board held its clocks back {count} times because of the current it drew ({name}): take a stronger supply, "
                "or a power mode with a limit"
            )
    readings = [(each.high, name) for name, each in during.temperatures_c.items()]
    readings += [(celsius, name) for name, celsius in after.temperatures_c.items()]
    hottest = max(readings, default=None)
    if hottest is not None and hottest[0] > HOT_C:
        yield f"it grew {hottest[0]:.0f} C hot ({hottest[1]}): let it cool, or cool it better, and measure again"


def _about_gpus(before: State, during: During) -> Iterator[str]:
    for gpu in before.gpus:
        name = f"GPU {gpu.number}"
        clock, load = during.clocks_hz.get(name), during.loads.get(name)
        if clock is None or load is None or load.high < 0.5 or gpu.max_hz is None:
            continue
        if clock.high < SLOWER * gpu.max_hz:
            why = (
                f", held back by {', '.join(during.held_back_by)}"
                if during.held_back_by
                else ""
            )
            yield (
                f"{gpu.name} was busy at {clock.high / 1e6:.0f} of {gpu.max_hz / 1e6:.0f} MHz{why}: "
                f"{_remedy(gpu, during)}"
            )
        elif during.held_back_by:
            yield f"{', '.join(during.held_back_by)} held back the clock of {gpu.name} for a while: {_remedy(gpu, during)}"
    yield from _about_power_limits(before.gpus)
    fixed = before.gpu_clock
    clock, load = during.clocks_hz.get("gpu"), during.loads.get("gpu")
    if (
        fixed is not None
        and clock is not None
        and load is not None
        and load.high >= 0.5
        and clock.high < SLOWER * fixed.high_hz
    ):
        yield (
            f"the GPU was busy at {clock.high / 1e6:.0f} of {fixed.high_hz / 1e6:.0f} MHz: fix its clock with "
            "'sudo jetson_clocks', and look at its temperature and supply"
        )


def _about_power_limits(gpus: tuple[Gpu, ...]) -> Iterator[str]:
    for gpu in gpus:
        limit, usual = gpu.power_limit_w, gpu.default_power_limit_w
        if limit is not None and usual is not None and limit < usual:
            yield (
                f"{gpu.name} may draw {limit:.0f} W of its {usual:.0f} W: raise it with 'sudo nvidia-smi -i {gpu.number} -pl "
                f"{usual:.0f}', or say so beside the figures"
            )


def _remedy(gpu: Gpu, during: During) -> str:
    """What to do about a clock below the highest."""
    said = " ".join(during.held_back_by)
    if "heat" in said or gpu.reasons & HEAT:
        return "let it cool, or cool it better, and measure again"
    if "power" in said or gpu.reasons & POWER:
        return "give it more power ('nvidia-smi -q -d POWER' says what it may have), or say so beside the figures"
    return f"fix its clock with 'sudo nvidia-smi -i {gpu.number} -lgc {int((gpu.max_hz or 0.0) / 1e6)}'"


def _about_supply(before: State, after: State) -> Iterator[str]:
    # What GPUs say of themselves is told with them.
    of_gpus = {text for gpu in (*before.gpus, *after.gpus) for text in gpu.held_back_by}
    found = dict.fromkeys((*before.held_back_by, *after.held_back_by))
    news = [text for text in after.held_back_before if text not in before.held_back_before]
    found |= dict.fromkeys(news)
    for text in found:
        if text in of_gpus:
            continue
        if text == "under-voltage":
            yield "the board gets too little voltage, and holds its clock back: use the supply that is made for it, and a short cable"
        else:
            yield f"the board is held back by {text}: let it cool, or cool it better, and measure again"


def _about_memory(before: State, after: State) -> Iterator[str]:
    used = after.memory.swap_used_bytes or 0
    more = used - (before.memory.swap_used_bytes or 0)
    if more > MUCH_SWAP:
        yield (
            f"{more / 2**20:.0f} MiB were moved to swap while it was measured, and what is swapped is slow: end what else "
            "uses memory, or measure fewer models at a time"
        )
