"""What the state of a machine did to a measurement: said, with what to do next, and not said where nothing is wrong."""

import dataclasses
import json

import jsonschema
import onnx
import pytest

from deploykit.profile.state import Core, Gpu, Memory, PowerMode, State
from deploykit.profile.state.during import Course, During, Range
from deploykit.profile.state.jetson import Clock
from deploykit.profile.state_advice import advise_on_state
from deploykit.report.profile_records import schema
from deploykit.report.state_records import course_record
from deploykit.report.state_text import state_text
from tests.deploykit.conftest import make_network

MAXN = PowerMode("MAXN", 0)
SUPER = PowerMode("MAXN_SUPER", 2)


def core(number=0, **changes):
    fields = {"kind": "Cortex-A78AE", "is_online": True, "hz": 1.3e9, "low_hz": 1.3e9}
    fields |= {"high_hz": 1.3e9, "max_hz": 1.7e9, "governor": "schedutil"}
    return Core(number, **{**fields, **changes})


def make_gpu(**changes):
    quiet = Gpu(
        0,
        "NVIDIA L40S",
        "535",
        2.5e9,
        2.52e9,
        9e9,
        60.0,
        290.0,
        350.0,
        350.0,
        0.9,
        2**30,
        2**20,
        0,
    )
    return dataclasses.replace(quiet, **changes)


def make_state(**changes):
    quiet = State(
        cores=(core(),),
        temperatures_c={"cpu-thermal": 50.0},
        power_w={},
        energy_j={},
        throttle_counts={"package": 3},
        held_back_by=(),
        held_back_before=(),
        gpus=(),
        gpu_clock=None,
        power_mode=None,
        fastest_mode=None,
        is_clock_fixed=None,
        memory=Memory(8 << 30, 4 << 30, 2 << 30, 0, None),
    )
    return dataclasses.replace(quiet, **changes)


def make_during(**changes):
    quiet = During(
        temperatures_c={"cpu-thermal": at(55.0)},
        clocks_hz={"cpu0": at(1.3e9)},
        power_w={},
        loads={},
        throttled={},
        held_back_by=(),
        energy_j=None,
        energy_of="",
        elapsed_s=10.0,
    )
    return dataclasses.replace(quiet, **changes)


def at(value, low=None):
    return Range(value if low is None else low, value, value, 5)


def advise(before=None, during=None, after=None):
    before = make_state(**(before or {}))
    after = dataclasses.replace(before, **(after or {}))
    return advise_on_state(Course(before, make_during(**(during or {})), after))


def test_nothing_is_advised_where_nothing_is_wrong():
    fine = {"power_mode": MAXN, "is_clock_fixed": True, "gpus": (make_gpu(),)}
    busy = {"clocks_hz": {"GPU 0": at(2.5e9)}, "loads": {"GPU 0": at(0.99)}}
    assert advise(fine, busy) == ()
    # An idle GPU has a low clock, and swap that was in use before is nothing new.
    idle = {"clocks_hz": {"GPU 0": at(2.1e8)}, "loads": {"GPU 0": at(0.0)}}
    assert (
        advise({**fine, "memory": Memory(8 << 30, 1 << 30, 2 << 30, 1 << 30, None)}, idle) == ()
    )


@pytest.mark.parametrize(
    ("before", "during", "after", "advised"),
    [
        (
            {"power_mode": PowerMode("15W", 0), "fastest_mode": SUPER},
            {},
            {},
            "for MAXN_SUPER run 'sudo nvpmodel -m 2'",
        ),
        ({"power_mode": PowerMode("MODE_15W", 2)}, {}, {}, "run 'sudo nvpmodel -m 0'"),
        (
            {"power_mode": MAXN, "is_clock_fixed": False},
            {},
            {},
            "fix them with 'sudo jetson_clocks'",
        ),
        (
            {"cores": (core(governor="performance"), core(4, governor="ondemand", low_hz=4e8))},
            {},
            {},
            "the cores 4 follow the load (governor 'ondemand'): fix them with 'sudo cpupower -c 4 frequency-set",
        ),
        ({"cores": (core(governor="performance"), core(4, governor="ondemand"))}, {}, {}, None),
        ({}, {"temperatures_c": {"tj": at(91.0)}}, {}, "it grew 91 C hot (tj): let it cool"),
        ({}, {}, {"temperatures_c": {"cpu": 88.0}}, "it grew 88 C hot (cpu)"),
        ({}, {}, {"throttle_counts": {"over-current oc3": 4, "package": 3}}, None),
        (
            {"throttle_counts": {"over-current oc3": 1}},
            {},
            {"throttle_counts": {"over-current oc3": 4}},
            "held its clocks back 3 times because of the current it drew (over-current oc3): take a stronger supply",
        ),
        (
            {"gpus": (make_gpu(),)},
            {
                "clocks_hz": {"GPU 0": at(1.9e9)},
                "loads": {"GPU 0": at(1.0)},
                "held_back_by": ("the power limit",),
            },
            {},
            "busy at 1900 of 2520 MHz, held back by the power limit: give it more power",
        ),
        (
            {"gpus": (make_gpu(),)},
            {
                "clocks_hz": {"GPU 0": at(1.9e9)},
                "loads": {"GPU 0": at(1.0)},
                "held_back_by": ("heat",),
            },
            {},
            "held back by heat: let it cool",
        ),
        (
            {"gpus": (make_gpu(),)},
            {"clocks_hz": {"GPU 0": at(1.9e9)}, "loads": {"GPU 0": at(1.0)}},
            {},
            "fix its clock with 'sudo nvidia-smi -i 0 -lgc 2520'",
        ),
        (
            {"gpus": (make_gpu(power_limit_w=200.0),)},
            {},
            {},
            "may draw 200 W of its 350 W: raise it with 'sudo nvidia-smi -i 0 -pl 350'",
        ),
        (
            {"gpu_clock": Clock(3e8, 9.18e8, 3e8)},
            {"clocks_hz": {"gpu": at(6e8)}, "loads": {"gpu": at(0.9)}},
            {},
            "the GPU was busy at 600 of 918 MHz: fix its clock with 'sudo jetson_clocks'",
        ),
        (
            {"held_back_by": ("under-voltage",)},
            {},
            {},
            "too little voltage, and holds its clock back: use the supply",
        ),
        ({}, {}, {"held_back_before": ("throttling",)}, "held back by throttling: let it cool"),
        ({"held_back_before": ("throttling",)}, {}, {}, None),
        (
            {},
            {},
            {"memory": Memory(8 << 30, 1 << 20, 2 << 30, 512 << 20, None)},
            "512 MiB were moved to swap",
        ),
    ],
)
def test_each_trouble_is_named_with_what_to_do(before, during, after, advised):
    found = advise(before, during, after)
    if advised is None:
        assert found == ()
        return
    assert len(found) == 1
    assert advised in found[0]


def test_the_line_of_a_jetson_says_what_matters():
    before = make_state(
        power_mode=PowerMode("25W", 1),
        is_clock_fixed=False,
        cores=(core(), core(1, governor="schedutil")),
    )
    during = make_during(
        temperatures_c={"cpu-thermal": at(62.0, 51.0), "gpu-thermal": at(58.0)},
        clocks_hz={"cpu0": at(7.3e8), "cpu1": at(1.34e9), "gpu": at(9.18e8, 3.06e8)},
        loads={"gpu": at(0.4)},
        energy_j=62.0,
        energy_of="VDD_IN",
    )
    record = course_record(before, during, before, run_s=0.02)
    assert record.during.joules_per_run == pytest.approx(0.124)
    assert state_text(record) == (
        "51 to 62 C (cpu-thermal), CPU at 1.34 GHz, GPU at 306 to 918 MHz, 40% busy, governor schedutil, power mode 25W, "
        "clocks not fixed, 6.2 W (VDD_IN), 0.124 J a run, 4.0 GiB of memory free"
    )
    # Several models that took turns have no energy of their own.
    assert course_record(before, during, before, run_s=None).during.joules_per_run is None


def test_a_profile_holds_the_state_of_this_machine(run, tmp_path):
    onnx.save(make_network(batch=1), tmp_path / "m.onnx")
    done = run("profile", tmp_path / "m.onnx", "--duration", "0.05", "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema("profile"))
    state = document["state"]
    assert state["before"]["memory_total_bytes"] > state["before"]["memory_available_bytes"] > 0
    assert state["during"]["elapsed_s"] > 0
    text = run("profile", tmp_path / "m.onnx", "--duration", "0.05").stdout
    assert "meanwhile: " in text
    assert "of memory free" in text
