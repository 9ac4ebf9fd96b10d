"""Finds what a part of bert_jax needs to be used without the rest: modules, and the packages that they import."""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import bert_jax

PACKAGE = Path(bert_jax.__file__).parent
_ALWAYS = {"jax", "flax"}  # with a line each, though one requires the other: numbers depend on their versions
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")  # at the beginning of a requirement


class Closure(NamedTuple):
    """Modules by name, and the other packages that are imported when they are."""

    modules: dict[str, Path]
    packages: set[str]  # top-level modules


def import_closure(roots: Iterable[str]) -> Closure:
    """Returns all modules of bert_jax that the roots import, also in functions, directly or not.

    Packages are those that importing the roots imports. Modules that only functions import may need others, which then are
    needed only if these functions are called; prediction calls none of them.

    Args:
      roots: names of modules, such as 'bert_jax.predict'.
    """
    modules = _reachable(roots, in_functions=True)
    at_import = _reachable(roots, in_functions=False)
    imported = {name for path in at_import.values() for name in _imports(path, in_functions=False)}
    tops = {name.partition(".")[0] for name in imported}
    return Closure(modules, tops - {"bert_jax", *sys.stdlib_module_names})


def _reachable(roots: Iterable[str], in_functions: bool) -> dict[str, Path]:
    modules, waiting = dict[str, Path](), list(roots)
    while waiting:
        name = waiting.pop()
        path = _file(name)
        if path is None and "." in name:  # a name that is imported from a module
            name = name.rpartition(".")[0]
            path = _file(name)
        if path is None or name in modules:
            continue
        modules[name] = path
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        waiting += [other for other in _imports(path, in_functions) if other.partition(".")[0] == "bert_jax"]
    return modules


def _file(name: str) -> Path | None:
    """Returns the file of a module of bert_jax; None if there is no such module."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _imports(path: Path, in_functions: bool) -> Iterator[str]:
    """Yields what a file imports: 'module', or 'module.name' of a `from` import."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif in_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def requirements(packages: Iterable[str]) -> list[str]:
    """Returns lines of a requirements file, such as 'jax==0.10.2', with the installed versions.

    What another line requires, as flax does optax, has no line, except jax and flax.
    """
    distributions = importlib.metadata.packages_distributions()
    candidates = [distributions[package] for package in sorted(packages)]
    certain = {names[0] for names in candidates if len(set(names)) == 1}
    dependencies = {name: dependencies_of(name) for name in certain}
    implied = set[str]().union(*(names - {name} for name, names in dependencies.items()))
    # A folder such as google/ belongs to several distributions; one that is implied is the one that is imported.
    certain |= {name for names in candidates if implied.isdisjoint(names) for name in names}
    return [
        f"{name}=={importlib.metadata.version(name)}"
        for name in sorted(certain)
        if name in _ALWAYS or name not in implied
    ]


def dependencies_of(name: str) -> set[str]:
    """Returns the distributions that one requires, directly or not, and itself; without those of extras."""
    known, waiting = set[str](), [name]
    while waiting:
        if (name := _normalized(waiting.pop())) in known:
            continue
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # for another platform
            continue
        known.add(name)
        waiting += [match[0] for line in required if "extra ==" not in line and (match := _NAME.match(line))]
    return known


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
