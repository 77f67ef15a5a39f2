"""What machines and NVIDIA's tools say of themselves, read back: texts of several boards, releases and drivers."""

import random
import re
import tomllib
from pathlib import Path

import pytest

from deploykit.profile import sampler
from deploykit.profile.state import heat, power, read_state, watch_for
from deploykit.profile.state.cores import kinds_text, read_cores
from deploykit.profile.state.during import read_during
from deploykit.profile.state.jetson import (
    are_fixed,
    fastest_mode,
    kept_mode,
    read_clocks,
    read_mode,
)
from deploykit.profile.state.memory import read_memory
from deploykit.profile.state.nvidia_smi import read_gpus
from deploykit.profile.state.raspberry import read_throttled
from deploykit.profile.state.seen import Ran, Seen
from deploykit.profile.state.soc import board, core_name, jetson_release, soc
from deploykit.profile.state.tegrastats import read_line

STATES = Path(__file__).parent / "states"


def text(name):
    return (STATES / name).read_text()


def make_seen(files=None, commands=None, **changes):
    fields = {"architecture": "aarch64", "system": "Linux", "release": "5.15", "processor": ""}
    fields |= {"cores": 4, "affinity": 4, "python": "3.10.12", "packages": {}}
    said = {name: Ran(*ran) for name, ran in (commands or {}).items()}
    return Seen(files or {}, said, **{**fields, "load_average": None, **changes})


# -- where the texts come from -------------------------------------------------------------------


def test_every_text_says_whether_it_was_recorded_and_where():
    index = tomllib.loads(text("index.toml"))
    assert set(index) == {path.name for path in STATES.iterdir()} - {"index.toml"}
    for name, entry in index.items():
        assert entry["kind"] in {"recorded", "synthetic"}, name
        assert len(entry["source"]) > 20, name


def test_no_text_identifies_a_machine():
    for path in STATES.iterdir():
        assert not re.search(
            r"GPU-[0-9a-f]{8}|uuid|serial(?! number)|@[a-z]+:~", path.read_text(), re.IGNORECASE
        ), path


# -- tegrastats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "memory", "cores", "gpu", "hottest", "total"),
    [
        ("tx2-r28", (1004, 7852, None), (6, 350e6), (0.0, 114e6), 34.0, ("VDD_IN", 1.876)),
        ("tx2nx-r32", (1689, 3825, 0), (6, 345e6), (0.0, None), 50.5, None),
        ("nano-r32", (1923, 3964, 191), (4, 1224e6), (0.0, 76e6), 45.0, ("POM_5V_IN", 1.75)),
        (
            "xavier-r32",
            (14700, 15692, 898),
            (8, 1190e6),
            (0.0, None),
            32.0,
            ("GPU + CPU + SOC + CV + VDDRQ + SYS5V", 7.632),
        ),
        (
            "orin-r35",
            (1282, 62795, 0),
            (12, 729e6),
            (0.0, None),
            42.593,
            ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 6.831),
        ),
        (
            "orinnano-r35",
            (3503, 7337, 430),
            (6, 729e6),
            (0.0, 305e6),
            46.968,
            ("VDD_IN", 4.915),
        ),
        (
            "orin-r36",
            (5137, 62841, 0),
            (12, 729e6),
            (0.0, None),
            52.875,
            ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 8.515),
        ),
        (
            "orin-r39",
            (20642, 62817, None),
            (12, 2201e6),
            (0.12, 1300e6),
            52.968,
            ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 13.907),
        ),
    ],
)
def test_lines_of_tegrastats_of_every_release_are_read(
    name, memory, cores, gpu, hottest, total
):
    found = read_line(text(f"tegrastats-{name}.txt"))
    used, whole, swap = memory
    assert found.memory_used_bytes == used << 20
    assert found.memory_total_bytes == whole << 20
    assert found.swap_used_bytes == (None if swap is None else swap << 20)
    assert (len(found.core_hz), found.core_hz[0]) == cores
    assert (found.gpu_load, found.gpu_hz) == gpu
    assert max(found.temperatures_c.values()) == hottest
    # A constant and a sensor that is off are no temperatures.
    assert not {"PMIC", "CV1"} & found.temperatures_c.keys() or name == "orinnano-r35"
    if total is None:
        assert power.total_w(found.power_w) is None
    else:
        rails, watts = power.total_w(found.power_w)
        assert (rails, round(watts, 6)) == total
    assert "NC" not in found.power_w
    assert "RAM" not in found.power_w


def test_cores_that_are_off_have_no_clock():
    found = read_line(text("tegrastats-tx2nx-r32.txt"))
    assert found.core_loads == (0.03, None, None, 0.0, 0.01, 0.01)
    assert found.core_hz[1] is None


def test_a_gpu_may_tell_its_clocks_and_no_load():
    found = read_line(text("tegrastats-thor.txt"))
    assert (found.gpu_load, found.gpu_hz, found.memory_hz) == (None, 1000e6, 1866e6)
    assert read_line("/bin/sh: 1: tegrastats: not found") is None


# -- nvpmodel, jetson_clocks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "number", "is_unlimited"),
    [
        ("nvpmodel-orin-r36.txt", "MAXN", 0, True),
        ("nvpmodel-orinnano-r36-verbose.txt", "25W", 1, False),
        ("nvpmodel-xaviernx-r32-verbose.txt", "MODE_15W_6CORE", 2, False),
    ],
)
def test_power_modes_are_read(name, mode, number, is_unlimited):
    found = read_mode(text(name))
    assert (found.name, found.number, found.is_unlimited) == (mode, number, is_unlimited)


def test_the_mode_without_a_limit_has_another_number_on_some_boards():
    found = fastest_mode(text("nvpmodel-orinnano.conf"))
    assert (found.name, found.number) == ("MAXN_SUPER", 2)
    assert fastest_mode("< POWER_MODEL ID=0 NAME=15W >\n") is None
    assert read_mode(text("nvpmodel-noroot.txt")) is None
    # A file says it to everybody.
    assert kept_mode("pmode:0002 fmode:quiet", text("nvpmodel-orinnano.conf")) == found
    assert kept_mode("", text("nvpmodel-orinnano.conf")) is None
    # Some releases say the name alone.
    assert read_mode("NV Power Mode: MAXN\n").number is None


@pytest.mark.parametrize(
    ("name", "cores", "gpu", "is_fixed"),
    [
        ("nano-r32", 4, (76.8e6, 921.6e6, 153.6e6), False),
        ("nano-r32-fixed", 1, (921.6e6, 921.6e6, 921.6e6), True),
        ("orinnano-r36", 6, (306e6, 918e6, 306e6), False),
        ("tx1-r28", 2, (76.8e6, 998.4e6, 76.8e6), False),
    ],
)
def test_fixed_clocks_are_told_from_others(name, cores, gpu, is_fixed):
    found = read_clocks(text(f"jetson_clocks-{name}.txt"))
    assert sum(key.startswith("cpu") for key in found) == cores
    assert (found["GPU"].low_hz, found["GPU"].high_hz, found["GPU"].hz) == gpu
    assert found["cpu0"].high_hz > 1e9
    assert are_fixed(found) is is_fixed


def test_without_rights_nothing_is_known_of_clocks():
    assert are_fixed(read_clocks(text("jetson_clocks-noroot.txt"))) is None


# -- nvidia-smi ----------------------------------------------------------------------------------


def test_old_and_new_drivers_name_their_columns_differently():
    (old,) = read_gpus(text("nvidia-smi-465.csv"))
    (new,) = read_gpus(text("nvidia-smi-610.csv"))
    assert (old.name, old.driver, old.hz, old.max_hz) == (
        "NVIDIA GeForce RTX 2080 SUPER",
        "465.27",
        300e6,
        2145e6,
    )
    assert (old.power_w, old.power_limit_w, old.celsius) == (30.37, 250.0, 32.0)
    assert (new.hz, new.max_hz, new.memory_total_bytes) == (345e6, 1980e6, 143771 << 20)
    # Both are idle, which is no reason to worry.
    assert old.reasons == new.reasons == 1
    assert old.held_back_by == new.held_back_by == ()


def test_a_loop_without_units_is_a_gpu_at_several_moments():
    found = read_gpus(text("nvidia-smi-nounits-loop.csv"))
    assert [(gpu.number, gpu.hz, gpu.load) for gpu in found] == [
        (0, 2520e6, 0.99),
        (1, 210e6, 0.0),
        (0, 1905e6, 1.0),
        (1, 210e6, 0.0),
    ]
    assert found[2].held_back_by == ("the power limit",)


def test_a_gpu_that_tells_nothing_is_named():
    (found,) = read_gpus(text("nvidia-smi-orin.csv"))
    assert found.name == "Orin (nvgpu)"
    assert (found.hz, found.power_w, found.memory_total_bytes, found.reasons) == (
        None,
        None,
        None,
        0,
    )
    assert read_gpus(text("nvidia-smi-unknown-field.txt")) == ()


# -- Raspberry Pi --------------------------------------------------------------------------------


def test_bits_of_a_raspberry_pi_are_words():
    now, before = read_throttled(text("vcgencmd-throttled.txt"))
    assert now == ("under-voltage", "throttling")
    assert before == ("under-voltage", "throttling")
    assert read_throttled("throttled=0x80000") == ((), ("its soft temperature limit",))
    assert read_throttled("VCHI initialization failed") == ((), ())


# -- files ---------------------------------------------------------------------------------------

CPUINFO = """processor\t: 0
CPU implementer\t: 0x41
CPU part\t: 0xd05

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


def clock_files(number, **kilohertz):
    folder = f"/sys/devices/system/cpu/cpu{number}/cpufreq"
    return {f"{folder}/{name}": f"{value}\n" for name, value in kilohertz.items()}


def test_cores_of_two_kinds_are_told_apart():
    files = {
        "/proc/cpuinfo": CPUINFO,
        **clock_files(0, cpuinfo_max_freq=1800000, scaling_governor="ondemand"),
        **clock_files(
            1,
            cpuinfo_max_freq=2400000,
            scaling_governor="performance",
            scaling_min_freq=2400000,
            scaling_max_freq=2400000,
        ),
        "/sys/devices/system/cpu/cpu1/online": "0\n",
    }
    little, big = read_cores(make_seen(files))
    assert (little.kind, little.max_hz, little.governor, little.is_fixed) == (
        "Cortex-A55",
        1.8e9,
        "ondemand",
        None,
    )
    assert (big.kind, big.is_online, big.is_fixed) == ("Cortex-A76", False, True)
    assert kinds_text((little, big)) == (
        "1 x Cortex-A55 up to 1.80 GHz",
        "1 x Cortex-A76 up to 2.40 GHz",
    )
    assert core_name("0x41", "0xd42") == "Cortex-A78AE"
    assert core_name("0x41", "nonsense") is None


def test_chip_and_board_are_named():
    files = {
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\n",
        "/proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\nnvidia,p3767-0005\nnvidia,tegra234\n",
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    }
    seen = make_seen(files)
    assert board(seen) == "NVIDIA Jetson Orin Nano Developer Kit"
    assert soc(seen) == "tegra234"
    assert jetson_release(seen) == "R36.4.3"
    nothing = make_seen()
    assert (board(nothing), soc(nothing), jetson_release(nothing)) == (None, None, None)


def test_zones_that_are_off_or_constant_are_no_temperatures():
    zone = "/sys/class/thermal/thermal_zone"
    files = {
        **{
            f"{zone}{number}/type": kind
            for number, kind in enumerate(("cpu", "cv0", "PMIC-Die", "cpu"))
        },
        **{
            f"{zone}{number}/temp": text
            for number, text in enumerate(("51500", "-256000", "100000", "48000"))
        },
        "/sys/class/hwmon/hwmon2/name": "k10temp",
        "/sys/class/hwmon/hwmon2/temp1_input": "63250",
        "/sys/class/hwmon/hwmon2/temp1_label": "Tctl",
        "/sys/class/hwmon/hwmon3/name": "nvme",
        "/sys/class/hwmon/hwmon3/temp1_input": "77000",
    }
    assert heat.temperatures_c(files) == {"cpu": 51.5, "cpu'": 48.0, "k10temp Tctl": 63.25}


def test_counts_of_cores_are_not_added_up():
    cpu = "/sys/devices/system/cpu"
    files = {
        f"{cpu}/cpu{number}/thermal_throttle/package_throttle_count": "7" for number in range(4)
    }
    files |= {
        f"{cpu}/cpu{number}/thermal_throttle/core_throttle_count": str(number)
        for number in range(4)
    }
    files["/sys/class/hwmon/hwmon1/oc3_event_cnt"] = "2"
    assert heat.throttle_counts(files) == {"package": 7, "core": 3, "over-current oc3": 2}


def test_rails_of_both_drivers_are_read():
    hwmon = "/sys/class/hwmon/hwmon4"
    files = {
        f"{hwmon}/name": "ina3221",
        f"{hwmon}/in1_label": "VDD_IN",
        f"{hwmon}/in7_label": "sum of shunt voltages",
    }
    files |= {
        f"{hwmon}/in1_input": "5056",
        f"{hwmon}/curr1_input": "984",
        f"{hwmon}/in2_label": "NC",
    }
    assert power.rails_w(files) == {"VDD_IN": pytest.approx(4.975104)}
    old = "/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {f"{old}/rail_name_0": "POM_5V_IN\n", f"{old}/in_power0_input": "2171\n"}
    assert power.rails_w(files) == {"POM_5V_IN": pytest.approx(2.171)}


def test_swap_in_memory_is_told_from_swap_on_a_disk():
    meminfo = "MemTotal:  7800000 kB\nMemAvailable: 300000 kB\nSwapTotal: 3900000 kB\nSwapFree: 2900000 kB\n"
    swaps = "Filename Type Size Used Priority\n/dev/zram0 partition 650000 200000 5\n/dev/zram1 partition 650000 100000 5\n"
    found = read_memory(meminfo, swaps)
    assert found.swap_used_bytes == 1000000 * 1024
    assert found.zram_used_bytes == 300000 * 1024
    assert found.available_bytes == 300000 * 1024
    assert read_memory("").total_bytes is None


# -- all of it together --------------------------------------------------------------------------


def jetson(**changes):
    """A Jetson Orin Nano as a user without rights sees it."""
    gpu = "/sys/class/devfreq/17000000.gpu"
    files = {
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1\n",
        "/etc/nvpmodel.conf": text("nvpmodel-orinnano.conf"),
        **clock_files(
            0, scaling_cur_freq=729600, scaling_min_freq=729600, scaling_max_freq=1344000
        ),
        f"{gpu}/cur_freq": "306000000",
        f"{gpu}/min_freq": "306000000",
        f"{gpu}/max_freq": "918000000",
        "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "/sys/class/thermal/thermal_zone0/temp": "49468",
        "/sys/class/hwmon/hwmon1/name": "ina3221",
        "/sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
        "/sys/class/hwmon/hwmon1/in1_input": "5000",
        "/sys/class/hwmon/hwmon1/curr1_input": "1000",
    }
    commands = {
        "nvpmodel": (0, text("nvpmodel-orinnano-r36-verbose.txt")),
        "jetson_clocks": (1, text("jetson_clocks-noroot.txt")),
        "tegrastats": (0, text("tegrastats-orinnano-r35.txt")),
        "nvidia-smi": (0, text("nvidia-smi-orin.csv")),
        "vcgencmd": (None, "it is not there"),
        **changes,
    }
    return make_seen(files, commands)


def test_a_jetson_is_understood_without_rights():
    found = read_state(jetson())
    assert found.power_mode.name == "25W"
    assert found.fastest_mode.number == 2
    assert found.is_clock_fixed is False
    assert found.gpu_clock.high_hz == 918e6
    assert found.temperatures_c == {"cpu-thermal": 49.468}
    assert found.power_w == {"VDD_IN": 5.0}
    # A tool of other machines that is not there is nobody's loss, and neither is one for administrators only.
    assert found.notes == ()


def test_a_missing_tool_is_a_note_and_no_error():
    found = read_state(
        jetson(
            nvpmodel=(None, "it is not there"), tegrastats=(None, "it did not end within 5 s")
        )
    )
    assert found.power_mode is None
    assert found.notes == (
        "nvpmodel gave no answer: it is not there",
        "tegrastats gave no answer: it did not end within 5 s",
    )
    failed = read_state(jetson(nvpmodel=(255, text("nvpmodel-noroot.txt"))))
    assert "exit code 255" in failed.notes[0]
    assert "Permission denied" in failed.notes[0]


def test_a_machine_that_tells_nothing_has_a_state():
    found = read_state(make_seen())
    assert (found.cores, found.temperatures_c, found.gpus, found.notes) == ((), {}, (), ())
    assert found.hottest is None
    assert watch_for(make_seen()) == {"files": [], "streams": []}


def test_what_is_watched_is_understood():
    seen = jetson()
    watched = watch_for(seen)
    assert watched["streams"] == [["tegrastats", "--interval", "1000"]]
    assert "/sys/class/hwmon/hwmon1/in1_input" in watched["files"]
    assert "/etc/nvpmodel.conf" not in watched["files"]

    def files(millicelsius, milliamperes, kilohertz):
        texts = {path: seen.files[path] for path in watched["files"]}
        texts["/sys/class/thermal/thermal_zone0/temp"] = str(millicelsius)
        texts["/sys/class/hwmon/hwmon1/curr1_input"] = str(milliamperes)
        texts["/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"] = str(kilohertz)
        return texts

    states = [
        {"at_s": 0.0, "files": files(50000, 2000, 1344000)},
        {"at_s": 1.0, "files": files(87000, 4000, 1036800)},
        {
            "at_s": 1.0,
            "stream": "tegrastats",
            "lines": ["RAM 1/2MB GR3D_FREQ 97%@918 VDD_IN 15000mW/9000mW"],
        },
    ]
    found = read_during(states, seen, 2.0)
    heat_range = found.temperatures_c["cpu-thermal"]
    assert (heat_range.low, heat_range.mean, heat_range.high) == (50.0, 68.5, 87.0)
    assert found.clocks_hz["cpu0"].low == 1036.8e6
    assert found.loads["gpu"].mean == 0.97
    assert found.power_w["VDD_IN"].mean == 15.0
    assert (found.energy_j, found.energy_of) == (pytest.approx(30.0), "VDD_IN")


def test_counters_of_energy_may_begin_again():
    zone = "/sys/class/powercap/intel-rapl:0"
    seen = make_seen(
        {
            f"{zone}/name": "package-0",
            f"{zone}/energy_uj": "0",
            f"{zone}/max_energy_range_uj": "100000000",
        }
    )
    states = [
        {"at_s": at_s, "files": {f"{zone}/energy_uj": str(energy)}}
        for at_s, energy in ((0.0, 80_000_000), (1.0, 95_000_000), (2.0, 25_000_000))
    ]
    found = read_during(states, seen, 4.0)
    drawn = found.power_w["package-0"]
    assert (drawn.low, drawn.mean, drawn.high) == pytest.approx((15.0, 22.5, 30.0))
    assert found.energy_j == pytest.approx(90.0)


def test_a_busy_gpu_says_what_held_it_back():
    header, *lines = text("nvidia-smi-nounits-loop.csv").splitlines()
    seen = make_seen(commands={"nvidia-smi": (0, "\n".join([header, *lines[:2]]))})
    assert watch_for(seen)["streams"][0][-1] == "--loop=1"
    assert "clocks_event_reasons.active" in watch_for(seen)["streams"][0][1]
    # The stream lost its header: that of the look before tells the columns.
    states = [{"at_s": 1.0, "stream": "nvidia-smi", "lines": lines}]
    found = read_during(states, seen, 3.0)
    assert found.held_back_by == ("the power limit",)
    assert found.temperatures_c["GPU 0"].high == 74.0
    assert found.energy_of == "GPU 0 + GPU 1"
    assert found.energy_j == pytest.approx((294.99 + 34.06) * 3)


# -- looking -------------------------------------------------------------------------------------


def write_tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_looking_takes_the_first_form_that_works_and_ends_what_does_not_end(tmp_path):
    tool = write_tool(
        tmp_path,
        "tool",
        'case "$1" in old) echo "no such field"; exit 2;; new) echo "$LANG";; loop) while :; do echo line; done;; *) sleep 60;; esac',
    )
    (tmp_path / "root/proc").mkdir(parents=True)
    (tmp_path / "root/proc/large").write_bytes(b"x" * 200_000)
    (tmp_path / "root/proc/tree").write_bytes(b"a,b\0c,d\0")
    found = sampler.look(
        ["/proc/*", "/none/*"],
        {
            "fresh": [[str(tool), "old"], [str(tool), "new"]],
            "old": [[str(tool), "old"]],
            "endless": [[2, str(tool), "loop"]],
            "stuck": [[str(tool), "stuck"]],
            "absent": [["/nowhere/tool"]],
        },
        timeout_s=1.0,
        root=str(tmp_path / "root"),
    )
    assert len(found["files"]["/proc/large"]) == 1 << 16
    assert found["files"]["/proc/tree"] == "a,b\nc,d\n"
    said = {name: (ran["code"], ran["text"]) for name, ran in found["commands"].items()}
    assert said["fresh"] == (0, "C\n")
    assert said["old"] == (2, "no such field\n")
    assert said["endless"] == (0, "line\nline\n")
    assert said["stuck"] == (None, "it did not end within 1 s\n")
    assert said["absent"] == (None, "it is not there")


# -- texts that are cut or garbled ---------------------------------------------------------------


def test_garbled_texts_are_no_errors():
    """A tool that was ended half-way, or one of a version that nobody has seen, says what can be understood."""
    dice = random.Random(0)  # noqa: S311 - garbling, not secrets
    names = sorted(path.name for path in STATES.iterdir() if path.suffix != ".toml")
    for round_ in range(400):
        texts = {}
        for tool in ("nvpmodel", "jetson_clocks", "tegrastats", "nvidia-smi", "vcgencmd"):
            letters = list(text(dice.choice([name for name in names if name.startswith(tool)])))
            for _ in range(dice.randrange(12)):
                letters[dice.randrange(len(letters))] = dice.choice("0.,-%@/[] \nA")
            texts[tool] = (0, "".join(letters[: dice.randrange(1, len(letters) + 1)]))
        files = dict(jetson().files)
        for path in dice.sample(sorted(files), 3):
            files[path] = dice.choice(("", "-1", "nan", "1e9", "a\nb", "0x", "9" * 30))
        seen = make_seen(files, texts)
        found = read_state(seen)
        assert isinstance(found.notes, tuple), round_
        watched = watch_for(seen)
        states = [
            {"at_s": 0.0, "files": {path: seen.files[path] for path in watched["files"]}},
            {"at_s": 1.0, "stream": "tegrastats", "lines": texts["tegrastats"][1].splitlines()},
            {"at_s": 1.0, "stream": "nvidia-smi", "lines": texts["nvidia-smi"][1].splitlines()},
        ]
        assert read_during(states, seen, 1.0).elapsed_s == 1.0
