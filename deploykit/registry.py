"""Which passes there are: those of `passes`, and plug-ins that other distributions declare.

A plug-in is an entry point of the group `deploykit.passes` that names a subclass of `passes.base.Pass`. Plug-ins run
only when they are asked for by name.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import importlib
import importlib.metadata
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from passes.base import Pass

__all__ = [
    "ENTRY_POINTS",
    "Entry",
    "OptionInfo",
    "accepts",
    "all_passes",
    "default_names",
    "defaults",
    "expanded",
    "find",
    "names_for_checkers",
    "parse_setting",
    "required",
    "settable",
]

ENTRY_POINTS = "deploykit.passes"


@dataclasses.dataclass(frozen=True)
class OptionInfo:
    """An option of a pass, as its constructor declares it.

    Attributes:
        name: the keyword.
        kind: its type, in words ("int", "carrier | bias-map", ...).
        default: its default in text; None where it has none.
        help: what the docstring says about it.
        is_settable: whether it can be given as text on a command line or in a recipe.
    """

    name: str
    kind: str
    default: str | None
    help: str
    is_settable: bool


@dataclasses.dataclass(frozen=True)
class Entry:
    """A pass and where it comes from.

    Attributes:
        kind: the class.
        origin: "deploykit", or the distribution of the plug-in.
    """

    kind: type[Pass]
    origin: str

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.kind.name

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.kind) or "").split("\n", 1)[0]

    @property
    def options(self) -> tuple[OptionInfo, ...]:
        """Its options."""
        described = _described_arguments(self.kind)
        hints = _hints(self.kind)
        return tuple(
            OptionInfo(
                name,
                _kind_text(hints.get(name, str)),
                None if parameter.default is parameter.empty else str(parameter.default),
                described.get(name, ""),
                _reader(hints.get(name, str)) is not None,
            )
            for name, parameter in _parameters(self.kind).items()
        )


def all_passes() -> dict[str, Entry]:
    """All passes by name, the built-in ones first, in their default order.

    Raises:
        UsageError: a plug-in cannot be loaded, is no Pass, or takes a name that is taken.
    """
    import passes
    from passes.base import Pass

    found = {kind.name: Entry(kind, "deploykit") for kind in passes.BUILTIN}
    for point in sorted(
        importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda point: point.name
    ):
        origin = point.dist.name if point.dist else point.value
        try:
            kind = point.load()
        except Exception as error:  # a plug-in may fail in any way while it is imported
            msg = f"the plug-in '{point.name}' of '{origin}' cannot be loaded: {error}. Repair or uninstall it."
            raise UsageError(msg) from error
        if not (isinstance(kind, type) and issubclass(kind, Pass)):
            msg = f"the plug-in '{point.name}' of '{origin}' is not a subclass of passes.base.Pass: {point.value}"
            raise UsageError(msg)
        if kind.name in found:
            taken = found[kind.name].origin
            msg = f"the plug-in '{kind.name}' of '{origin}' has a name that '{taken}' already uses. Uninstall one."
            raise UsageError(msg)
        found[kind.name] = Entry(kind, origin)
    return found


def default_names() -> tuple[str, ...]:
    """What runs when no passes are named: every built-in pass that is exact."""
    import passes

    return tuple(kind.name for kind in passes.BUILTIN if kind.exact)


def expanded(names: Sequence[str] | None) -> tuple[str, ...]:
    """The passes that names stand for: themselves, or with a plus before each, those that run unasked and they.

    Args:
        names: None for those that run unasked; `("+prune-channels",)` for these and one more, at its place in the order.

    Raises:
        UsageError: a plus stands before some of them only, or before what is no pass.
    """
    if names is None:
        return default_names()
    more = [name.removeprefix("+") for name in names if name.startswith("+")]
    if not more:
        return tuple(names)
    if len(more) < len(names):
        msg = f"a plus before a pass adds it to the default ones, so it goes before all of {', '.join(names)} or before none."
        raise UsageError(msg)
    for name in more:
        find(name)
    wanted = {*default_names(), *more}
    return tuple(name for name in all_passes() if name in wanted)


def find(name: str) -> Entry:
    """The pass of that name.

    Raises:
        UsageError: there is none; the message names those there are.
    """
    known = all_passes()
    if name not in known:
        msg = f"there is no pass '{name}'. There are: {', '.join(known)} (see 'deploykit passes')."
        raise UsageError(msg)
    return known[name]


def accepts(kind: type[Pass], option: str) -> bool:
    """Whether a pass has an option of that name."""
    return option in _parameters(kind)


def required(kind: type[Pass]) -> tuple[str, ...]:
    """Options of a pass that have no default."""
    return tuple(
        name
        for name, parameter in _parameters(kind).items()
        if parameter.default is parameter.empty
    )


def defaults(kind: type[Pass]) -> dict[str, object]:
    """Defaults of the options of a pass that have one."""
    return {
        name: parameter.default
        for name, parameter in _parameters(kind).items()
        if parameter.default is not parameter.empty
    }


def settable(kind: type[Pass], given: Mapping[str, object]) -> dict[str, object]:
    """The options of a pass that text can say, with the values given or their defaults; None and nothing are left out."""
    values = {**defaults(kind), **given}
    return {
        option.name: values[option.name]
        for option in Entry(kind, "").options
        if option.is_settable and values.get(option.name) not in (None, ())
    }


def parse_setting(name: str, option: str, value: object) -> object:
    """Read an option's value as the pass declares it.

    Args:
        name: the pass.
        option: its option.
        value: text from a command line, or a value from a recipe.

    Raises:
        UsageError: the pass has no such option, or the value is none of its type.
    """
    kind = find(name).kind
    known = _parameters(kind)
    if option not in known:
        there = ", ".join(known) or "none"
        msg = f"the pass '{name}' has no option '{option}'. Its options: {there}."
        raise UsageError(msg)
    hint = _hints(kind).get(option, str)
    reader = _reader(hint)
    if reader is None:
        msg = f"the option '{option}' of '{name}' cannot be given as text; it is set by a flag of its own."
        raise UsageError(msg)
    try:
        return reader(value)
    except (ValueError, TypeError) as error:
        msg = f"'{name}.{option}' takes {_kind_text(hint)}, not '{value}'."
        raise UsageError(msg) from error


def _parameters(kind: type[Pass]) -> Mapping[str, inspect.Parameter]:
    if kind.__init__ is object.__init__:
        return {}
    found = inspect.signature(kind).parameters
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {name: parameter for name, parameter in found.items() if parameter.kind in named}


def _hints(kind: type[Pass]) -> dict[str, Any]:
    module = inspect.getmodule(kind)
    names = {
        **vars(builtins),
        **(vars(module) if module else {}),
        **names_for_checkers(module),
    }
    return {
        name: _resolved(str(parameter.annotation), names, type(parameter.default))
        for name, parameter in _parameters(kind).items()
    }


def _resolved(annotation: str, names: dict[str, Any], default: type) -> Any:  # noqa: ANN401 - a type form
    """The type that an annotation names; that of the default if it names something that is not there."""
    try:
        return eval(annotation, names)  # noqa: S307 - the pass's own annotation, which Python would evaluate too
    except (NameError, TypeError, SyntaxError):
        return default


def names_for_checkers(module: types.ModuleType | None) -> dict[str, Any]:
    """What a module imports under `if TYPE_CHECKING:` only, as most do with the types of options."""
    found: dict[str, Any] = {}
    try:
        tree = ast.parse(inspect.getsource(module)) if module else ast.Module([], [])
    except (OSError, TypeError):
        return found
    for block in tree.body:
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING"):
            for line in block.body:
                with contextlib.suppress(ImportError, AttributeError):
                    if isinstance(line, ast.ImportFrom) and line.module and not line.level:
                        source = importlib.import_module(line.module)
                        found |= {
                            name.asname or name.name: getattr(source, name.name)
                            for name in line.names
                        }
    return found


def _reader(hint: Any) -> Any:  # noqa: ANN401 - a type form, and a callable for it
    """A function that reads a value of that type, or None if text cannot say it."""
    origin = typing.get_origin(hint)
    if origin is Mapping and typing.get_args(hint) == (str, int):
        return _counts
    if origin is typing.Literal:
        return _one_of(typing.get_args(hint))
    if origin in {typing.Union, types.UnionType}:
        readers = [_reader(part) for part in typing.get_args(hint) if part is not type(None)]
        optional = type(None) in typing.get_args(hint)
        usable = [reader for reader in readers if reader is not None]
        return _first_of(usable, optional=optional) if usable else None
    if origin is tuple and typing.get_args(hint)[1:] == (...,):
        return _list_of(_reader(typing.get_args(hint)[0]))
    return {bool: _boolean, int: _integer, float: float, str: str}.get(hint)


def _boolean(value: object) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    text = str(value).lower()
    if text not in words:
        raise ValueError(text)
    return words[text]


def _integer(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError(value)
    return int(str(value))


def _counts(value: object) -> dict[str, int]:
    """Numbers by name: as a recipe holds them, or the file that holds them."""
    if isinstance(value, Mapping):
        return {str(name): _integer(number) for name, number in value.items()}
    from deploykit.channel_counts import read

    return dict(read(Path(str(value))).keep)


def _one_of(choices: tuple[object, ...]) -> Any:  # noqa: ANN401 - a callable
    def read(value: object) -> object:
        for choice in choices:
            if str(choice) == str(value):
                return choice
        raise ValueError(value)

    return read


def _first_of(readers: list[Any], *, optional: bool) -> Any:  # noqa: ANN401 - a callable
    def read(value: object) -> object:
        if optional and (value is None or str(value).lower() == "none"):
            return None
        for reader in readers:
            try:
                return reader(value)
            except (ValueError, TypeError):
                continue
        raise ValueError(value)

    return read


def _list_of(reader: Any) -> Any:  # noqa: ANN401 - a callable
    def read(value: object) -> tuple[object, ...]:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(reader(part) for part in parts)

    return None if reader is None else read


def _kind_text(hint: Any) -> str:  # noqa: ANN401 - a type form
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(hint))
    if origin in {typing.Union, types.UnionType}:
        return " | ".join(_kind_text(part) for part in typing.get_args(hint))
    if origin is tuple:  # of any length: others cannot be given as text
        return f"{_kind_text(typing.get_args(hint)[0])},..."
    if hint is type(None):
        return "none"
    if origin is Mapping and typing.get_args(hint) == (str, int):
        return "FILE"
    return str(getattr(hint, "__name__", hint))


def _described_arguments(kind: type[Pass]) -> dict[str, str]:
    """The `Args:` section of a Google style docstring."""
    found: dict[str, str] = {}
    name = ""
    inside = False
    for line in (inspect.getdoc(kind) or "").splitlines():
        if line.strip() == "Args:":
            inside = True
        elif inside and line and not line.startswith(" "):
            break
        elif (
            inside and line.startswith("    ") and not line.startswith("     ") and ":" in line
        ):
            name, text = line.strip().split(":", 1)
            name = name.split(" ", 1)[0]
            found[name] = text.strip()
        elif inside and name and line.strip():
            found[name] += " " + line.strip()
    return found
