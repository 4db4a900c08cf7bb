"""What a port imports and the machine lacks: all of it, where Python stops at the first."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from . import Target
from .problems import MissingImports

SHARED = ("google",)  # names that many distributions put packages under: the second part says which is meant


def missing_imports(error: BaseException, target: Target) -> list[str]:
    """All that a port lacks when this error ended what it did; empty where the fault is in the port itself."""
    if isinstance(error, MissingImports):
        return error.names
    if not isinstance(error, ImportError):
        return []
    lacking = error.name
    if found := re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error)):
        lacking = ".".join(reversed(found.groups()))
    elif found := re.search(r"pip install ([\w-]+)", str(error)):  # transformers names no module, but what to do
        lacking = found[1]
    top = target.module.partition(".")[0]
    if not lacking or (lacking.partition(".")[0] == top and _installed(top)):
        return []
    missing = []
    if target.module or target.path:
        # A lone file is imported as one of mlx-lm's.
        missing = missing_modules(target.module or "mlx_lm.models.port", [Path(target.path)] if target.path else [])
    covered = any(f"{lacking}.".startswith(f"{name}.") or name.startswith(f"{lacking}.") for name in missing)
    return missing if covered else sorted({*missing, lacking})


def missing_modules(module: str, files: list[Path]) -> list[str]:
    """Top-level modules that are imported by these files, or by files of the same package that they import, and that
    are not installed.

    Only imports that run when a file is imported count, and none that a `try` guards. `module` is the dotted name of
    the first file; its package and all packages around it are looked through too.
    """
    top = module.partition(".")[0]
    names = [(".".join(module.split(".")[: depth + 1]), None) for depth in range(module.count(".") + 1)]
    waiting = [*names, *((module, file) for file in files)]
    seen, missing = set(), set()
    while waiting:
        name, file = waiting.pop()
        file = file or _file_of(name)
        if file is None or file in seen:
            continue
        seen.add(file)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(file, package):
            if imported.partition(".")[0] != top:
                missing.add(_distributed(imported))
            else:
                waiting.extend((part, None) for part in _with_parents(imported))
    return sorted(name for name in missing - {*SHARED} if not _installed(name))


def _distributed(name: str) -> str:
    """The part of a dotted name that is installed as one."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in SHARED else 1])


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: depth + 1]) for depth in range(len(parts))]


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _file_of(name: str) -> Path | None:
    """The source of a dotted module, found without importing anything."""
    top, *rest = name.split(".")
    spec = PathFinder.find_spec(top)
    if spec is None:
        return None
    if not spec.submodule_search_locations:
        return Path(spec.origin) if not rest and spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations:
        path = Path(folder).joinpath(*rest)
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
    return None


def _imports(file: Path, package: str) -> Iterator[str]:
    """Dotted names that a file imports when it is imported itself, relative ones resolved against its package."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                around = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*around, *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, (ast.If, ast.With)) and not _for_types_only(node):
            waiting.extend([*node.body, *getattr(node, "orelse", [])])
        elif isinstance(node, ast.ClassDef):
            waiting.extend(node.body)


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
