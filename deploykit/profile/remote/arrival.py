"""What runs on a device before and after the keeper, as text for its Python: it finds out where it is, and cleans up.

Python 2 reads it, too, so that one that is too old can say so. Nothing is installed, and nothing is written but in the
workspace of the run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from deploykit.errors import RuntimeUnavailable

__all__ = ["MARK", "arrive", "leave", "read_answer"]

MARK = "deploykit: "
"""What the line with the answer begins with: a shell may greet before."""

PLACES = r"""
import json, os, sys
ASK = json.loads(%s)
def say(**found):
    sys.stdout.write(ASK["mark"] + json.dumps(found) + "\n")
    sys.stdout.flush()
def bases():
    if ASK["base"]:
        return [os.path.expanduser(ASK["base"])]
    import tempfile
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [os.path.join(cache, "deploykit"), os.path.join(tempfile.gettempdir(), "deploykit-%%d" %% os.getuid())]
"""

ARRIVE = r"""
def stale(folder):
    # A run that a power cut ended has nobody left to clean up after it.
    import time
    try:
        with open(os.path.join(folder, "pid")) as file:
            os.kill(int(file.read()), 0)
        return False
    except (OSError, ValueError):
        pass
    try:
        return time.time() - os.stat(folder).st_mtime > ASK["settings"]["lease_s"] + 60
    except OSError:
        return False

def make(base):
    import shutil
    if not os.path.isdir(base):
        os.makedirs(base, 0o700)
    if not ASK["base"] and os.stat(base).st_uid != os.getuid():
        raise PermissionError(13, "it is somebody else's")
    for name in os.listdir(base):
        if name.startswith("run-") and stale(os.path.join(base, name)):
            shutil.rmtree(os.path.join(base, name), ignore_errors=True)
    work = os.path.join(base, "run-" + ASK["token"])
    os.mkdir(work, 0o700)
    try:
        for name in ("jobs", "models", "inputs"):
            os.mkdir(os.path.join(work, name))
        texts = dict(ASK["files"])
        texts["keeper.json"] = json.dumps(ASK["settings"])
        texts["lease"] = "0\n"
        texts["reserve"] = "-" * 65536
        for name, text in texts.items():
            with open(os.path.join(work, name), "w", encoding="utf-8") as file:
                file.write(text)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return work

def start(work):
    import subprocess
    with open(os.path.join(work, "keeper.err"), "wb") as errors, open(os.devnull, "r+b") as nothing:
        keeper = subprocess.Popen(
            [sys.executable, os.path.join(work, "keeper.py"), work],
            stdin=nothing, stdout=nothing, stderr=errors, cwd="/", start_new_session=True,
        )
    with open(os.path.join(work, "pid"), "w") as file:
        file.write(str(keeper.pid))
    return keeper.pid

def arrive():
    version = list(sys.version_info[:3])
    if sys.version_info < (3, 8):
        return say(problem="python", version=version)
    if os.name != "posix":
        return say(problem="system", text=sys.platform)
    import importlib.util
    present = dict((name, importlib.util.find_spec(name) is not None) for name in ASK["packages"])
    failures = []
    for base in bases():
        try:
            work = make(base)
        except OSError as error:
            failures.append([base, error.errno, error.strerror])
            continue
        found = os.statvfs(work)
        say(
            folder=work, store=os.path.join(base, "models"), pid=start(work), version=version, present=present,
            free=found.f_bavail * found.f_frsize,
        )
        return
    say(problem="folder", failures=failures)

arrive()
"""

LEAVE = r"""
import shutil, signal, time
def number(path):
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
def belongs(pid, work):
    # Numbers of processes are used again.
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            return os.fsencode(work) in file.read()
    except OSError:
        return not os.path.isdir("/proc/self")
left = []
for base in bases():
    work = os.path.join(base, "run-" + ASK["token"])
    if not os.path.isdir(work):
        continue
    # Models that were on their way to those that are kept.
    for name in os.listdir(os.path.join(base, "models")) if os.path.isdir(os.path.join(base, "models")) else []:
        if name.endswith("." + ASK["token"]):
            shutil.rmtree(os.path.join(base, "models", name), ignore_errors=True)
    keeper = number(os.path.join(work, "pid"))
    if keeper is not None and belongs(keeper, work):
        os.kill(keeper, signal.SIGTERM)
        for _ in range(60):
            if not os.path.isdir(work):
                break
            time.sleep(0.05)
    for pid in (keeper, number(os.path.join(work, "child"))):
        if pid is not None and belongs(pid, work):
            try:
                os.killpg(pid, signal.SIGKILL)
            except OSError:
                pass
    for _ in range(20):
        shutil.rmtree(work, ignore_errors=True)
        if not os.path.isdir(work):
            break
        time.sleep(0.1)
    else:
        left.append(work)
    try:
        if not ASK["base"]:
            os.rmdir(base)
    except OSError:
        pass
say(left=left)
"""


def arrive(
    *,
    token: str,
    base: str | None,
    files: Mapping[str, str],
    packages: tuple[str, ...],
    lease_s: float,
    silent_s: float,
) -> str:
    """A script that makes a workspace, starts the keeper in it, and says what it found.

    Args:
        token: what the workspace is called by; random.
        base: the folder that it is made in; None is one for caches, or for temporary files.
        files: texts that are written there, by name.
        packages: packages to look for; they are not imported.
        lease_s: see `keeper.Keeper`.
        silent_s: see `keeper.Keeper`.
    """
    settings = {"lease_s": lease_s, "silent_s": silent_s, "owns_parent": base is None}
    asked = {
        **_ask(token, base),
        "files": dict(files),
        "packages": packages,
        "settings": settings,
    }
    return PLACES % repr(json.dumps(asked)) + ARRIVE


def leave(*, token: str, base: str | None) -> str:
    """A script that ends whatever runs in a workspace, and removes it."""
    return PLACES % repr(json.dumps(_ask(token, base))) + LEAVE


def _ask(token: str, base: str | None) -> dict[str, object]:
    return {"token": token, "base": base, "mark": MARK}


def read_answer(output: str) -> dict[str, Any] | None:
    """What a script said; None if it said nothing."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if not lines:
        return None
    try:
        found: dict[str, Any] = json.loads(lines[-1][len(MARK) :])
    except ValueError as error:
        msg = f"what the device said is cut off: {lines[-1][:200]}. Try again."
        raise RuntimeUnavailable(msg) from error
    return found
