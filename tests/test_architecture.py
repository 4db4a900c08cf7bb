"""The arrows of docs/architecture.md: who may know whom. Run: pytest tests/test_architecture.py"""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# Each room, and the rooms that it may import from. Whatever is not here is not allowed.
PLAIN = {"errors", "results", "environment"}
MODELS = {"reference_torch", "dsv4_mlx", "dsv4_checkpoints"}
ALLOWED = {
    "errors": set(),
    "results": set(),
    "environment": {"errors"},
    "cases": {"errors", "reference_torch", "dsv4_checkpoints"},
    "judging": {"cases", "results", "devices.results", "reference_torch", "dsv4_mlx"},
    "pairs": {"cases"},
    "lives": set(),
    "devices": {"errors", "environment"},
    "candidates": {"errors", "judging", "lives", "dsv4_mlx"},
    "gate": {"errors", "results", "cases", "judging", "candidates", "lives", *MODELS},
    "lines": {"results", "judging", "candidates", "gate", *MODELS},
    "streamed": {"errors", "results", "judging", "cases", *MODELS},
    "conversion": {"errors", "results", "judging", "streamed", *MODELS},
    "whole": {"errors", "results", "judging", "streamed", "candidates", *MODELS},
    "beside": {*PLAIN, "devices", "judging", "candidates", "gate"},
    "jobs": {
        *PLAIN,
        *MODELS,
        "beside",
        "cases",
        "judging",
        "pairs",
        "lives",
        "candidates",
        "gate",
        "lines",
        "streamed",
        "conversion",
        "whole",
    },
    "report": {"errors", "results", "gate.results", "streamed.results"},
    "commands": {*PLAIN, "beside", "cases", "pairs", "devices", "gate", "streamed", "whole", "jobs", "report"},
    "cli": {*PLAIN, "commands"},
    "__main__": {"cli"},
    "pytest_plugin": {*PLAIN, "beside", "gate", "jobs"},
    "pytest_full_model": {*PLAIN, "commands", "streamed", "whole"},
    "reference_torch": {"dsv4_checkpoints"},
    "dsv4_mlx": {"dsv4_checkpoints"},
    "dsv4_checkpoints": set(),
}
PACKAGES = ("parity", "reference_torch", "dsv4_mlx", "dsv4_checkpoints")
LONGEST = 350  # lines of a file
MOST = 14  # modules of a folder


def modules(root=REPOSITORY):
    """(dotted name, path) of every module of the four packages."""
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(name, path, known):
    """The dotted modules of the four packages that a file imports, wherever in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found = [one if (one := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        yield from (one for one in found if one.split(".")[0] in PACKAGES)


def room(name):
    package, *rest = name.split(".")
    return (rest[0] if rest else package) if package == "parity" else package


def broken(root=REPOSITORY):
    """Arrows against the rules, in words."""
    known = dict(modules(root))
    for name, path in known.items():
        for target in imported(name, path, known):
            there = target.removeprefix("parity.")
            if room(target) not in (room(name), "parity") and not {room(target), there} & ALLOWED[room(name)]:
                may = ", ".join(sorted(ALLOWED[room(name)])) or "nobody"
                yield f"{name} imports {target}: {room(name)} may know {may}"


def test_arrows_go_one_way():
    assert list(broken()) == []


def test_a_new_arrow_against_them_is_named(tmp_path):
    for package in PACKAGES:
        (tmp_path / package).mkdir()
    (tmp_path / "parity" / "report").mkdir()
    (tmp_path / "parity" / "report" / "page.py").write_text("def f():\n    from ..jobs import run\n")
    (tmp_path / "parity" / "jobs").mkdir()
    (tmp_path / "parity" / "jobs" / "run.py").write_text("from parity import results\n")
    (tmp_path / "dsv4_mlx" / "model.py").write_text("import parity.errors\n")
    assert list(broken(tmp_path)) == [
        "parity.report.page imports parity.jobs.run: report may know errors, gate.results, results, streamed.results",
        "dsv4_mlx.model imports parity.errors: dsv4_mlx may know dsv4_checkpoints",
    ]


def test_rooms_do_not_know_each_other_in_a_circle():
    done, waiting = set(), dict(ALLOWED)
    while waiting:
        ready = [name for name, known in waiting.items() if {one.split(".")[0] for one in known} <= done | {name}]
        assert ready, waiting
        done |= {*ready}
        waiting = {name: known for name, known in waiting.items() if name not in done}


@pytest.mark.parametrize("package", ["reference_torch", "dsv4_mlx"])
def test_modules_of_a_model_do_not_import_each_other_in_a_circle(package):
    known = {name: path for name, path in modules() if name.startswith(f"{package}.")}
    waiting = {name: {*imported(name, path, known)} & known.keys() - {name} for name, path in known.items()}
    while waiting:
        ready = [name for name, needs in waiting.items() if not needs & waiting.keys()]
        assert ready, waiting
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}


def test_files_and_folders_keep_their_size():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for _, path in modules()}
    assert {str(path): count for path, count in lines.items() if count > LONGEST} == {}
    assert sorted(lines.values())[len(lines) // 2] < 110
    folders = [path.parent for path in lines if path.name != "__init__.py" and "parity" in path.parts]
    assert max(map(folders.count, folders)) <= MOST


def test_the_page_names_every_room():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {name for name in ALLOWED if (REPOSITORY / "parity" / name).is_dir()}
    assert {name for name in rooms if f"| `{name}/`" not in page} == set()
