"""The user's own Python: which files a module is made of, and the module as these files are now.

A result depends on the source of what made it. So the files that a module imports from beside the recipe, or from anywhere
that nothing was installed to, are found without running them; of what is installed, the version stands for the source. And
a module that this process imported before, or that Python keeps compiled, may be another one by now: it is read anew.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType

from deploykit.errors import UsageError
from deploykit.step.schema import nearest

__all__ = ["Sources", "check_reference", "find_sources", "loading"]

OWN = ("deploykit", "passes")
"""Packages whose source is hashed as a whole wherever it matters."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """What a module is made of.

    Attributes:
        files: its file, and those of the modules that it imports and that were not installed; sorted.
        versions: of installed distributions that it imports, by name.
    """

    files: tuple[Path, ...]
    versions: Mapping[str, str]


def find_sources(module: str, folder: Path) -> Sources:
    """Find what a module is made of.

    Args:
        module: its dotted name.
        folder: where it is looked for first.

    Raises:
        UsageError: there is no such module, or a file of it is no Python.
    """
    found: dict[Path, str] = {}
    foreign: set[str] = set()
    open_names = [module]
    seen: set[str] = set()
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        parent = name.rpartition(".")[0]
        if parent:
            open_names.append(parent)
        spec = _spec(name, folder)
        if spec is None or name.partition(".")[0] in OWN:
            continue
        if not _is_local(spec.origin):
            foreign.add(name.partition(".")[0])
            continue
        if spec.origin is None:
            continue  # a folder without __init__.py
        path = Path(spec.origin)
        found[path] = name
        open_names += _imported(
            path, name, is_package=spec.submodule_search_locations is not None
        )
    return Sources(tuple(sorted(found)), _versions(foreign))


def check_reference(reference: str, folder: Path) -> None:
    """Check that `module:object` names something, as far as that can be known without running it.

    Raises:
        UsageError: there is no such module, or nothing of that name in it.
    """
    module, _, name = reference.partition(":")
    spec = _spec(module, folder)
    if spec is None:
        near = sorted(path.stem for path in folder.glob("*.py"))
        msg = f"there is no module '{module}', in '{folder}' or installed. {nearest(module, near)}"
        raise UsageError(msg)
    if not _is_local(spec.origin) or spec.origin is None:
        return
    tree = _parse(Path(spec.origin))
    names = _top_names(tree)
    if name.partition(".")[0] not in names and "*" not in names:
        msg = f"'{spec.origin}' has no '{name}'. {nearest(name, sorted(names))}"
        raise UsageError(msg)


@contextlib.contextmanager
def loading(folder: Path, files: Sequence[Path]) -> Iterator[None]:
    """While this is open, modules are looked for in a folder first, and those of these files are what the files are now.

    Args:
        folder: usually that of the recipe.
        files: as `find_sources` found them.
    """
    paths, modules = list(sys.path), dict(sys.modules)
    local = {path.resolve() for path in files}
    for name, module in modules.items():
        if _file_of(module) in local:
            del sys.modules[name]
    # The current folder comes behind, and no one puts it in front.
    sys.path[:] = _search_path(folder)
    finder = _Anew(local)
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path[:] = paths
        for name, module in list(sys.modules.items()):
            if _file_of(module) in local:
                del sys.modules[name]
                if name in modules:
                    sys.modules[name] = modules[name]


class _Anew(importlib.abc.MetaPathFinder):
    """Finds the modules of some files, and reads them without what Python keeps compiled of them."""

    def __init__(self, files: set[Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module, if it is one of these files."""
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if (
            spec is None
            or spec.origin is None
            or Path(spec.origin).resolve() not in self._files
        ):
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            spec.origin,
            loader=_AsItIs(fullname, spec.origin),
            submodule_search_locations=spec.submodule_search_locations,
        )


class _AsItIs(importlib.machinery.SourceFileLoader):
    """Compiles a file whenever it is loaded: what is kept may be of an older file, with its size, of the same second."""

    def get_code(self, fullname: str) -> CodeType | None:
        """The file, compiled."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _search_path(folder: Path) -> list[str]:
    return list(dict.fromkeys((str(folder), *(sys.path or ()), str(Path.cwd()))))


def _spec(name: str, folder: Path) -> importlib.machinery.ModuleSpec | None:
    """Where a module is; nothing is run."""
    search: Sequence[str] = _search_path(folder)
    spec = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        full = ".".join(parts[:count])
        try:
            spec = importlib.machinery.PathFinder.find_spec(full, search)
            if spec is None and count == 1:
                spec = importlib.util.find_spec(
                    full
                )  # built in, or in the hands of another finder
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        search = list(spec.submodule_search_locations or ())
    return spec


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({Path(paths[name]).resolve() for name in names})


def _is_local(origin: str | None) -> bool:
    """Whether a module was not installed, and is no part of Python."""
    if origin is None:
        return True
    path = Path(origin)
    if path.suffix != ".py":
        return False  # built in, or compiled
    path = path.resolve()
    return not any(path.is_relative_to(folder) for folder in _installed_folders())


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        msg = f"'{path}' is no Python: {error.msg} (line {error.lineno}). Correct it."
        raise UsageError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"'{path}' cannot be read as Python: {error}."
        raise UsageError(msg) from error


def _imported(path: Path, name: str, *, is_package: bool) -> list[str]:
    """Names of the modules that a file imports, and of what may be modules."""
    package = name if is_package else name.rpartition(".")[0]
    found: list[str] = []
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(filter(None, (*above, base)))
            if base:
                found.append(base)
            found += [
                f"{base}.{each.name}".lstrip(".") for each in node.names if each.name != "*"
            ]
    return found


def _top_names(tree: ast.Module) -> set[str]:
    """What a module defines, as far as its text tells; with a star if it may be more."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found | ({"*"} if "__getattr__" in found else set())


def _versions(names: set[str]) -> dict[str, str]:
    """Versions of the distributions that top-level modules are from."""
    names -= set(sys.stdlib_module_names)
    if not names:
        return {}
    owners = importlib.metadata.packages_distributions()
    return {
        owner: importlib.metadata.version(owner)
        for name in sorted(names)
        for owner in owners.get(name, ())
    }


def _file_of(module: object) -> Path | None:
    path = getattr(module, "__file__", None)
    return Path(path).resolve() if isinstance(path, str) else None
