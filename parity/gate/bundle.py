"""A failing case as a folder that stands alone: the checkpoint, the tokens, expected and got, and a script that shows
the difference with nothing but the port's own package."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ..candidates.adapters import resolve
from ..candidates.adapters.problems import CandidateProblem
from ..candidates.mending import source_of
from ..errors import BadInput
from ..lives.script import HELPERS, IMPORTS
from ..results import Verdict, plain
from .families import Family
from .matrix import Engine, ends_of, judge
from .results import KINDS_OF_LINE, Candidate, Cell, WrongLine

LOADING = {
    "dsv4_mlx": "import dsv4_mlx\nmodel = dsv4_mlx.load(here / 'checkpoint')",
    "mlx_lm": "from mlx_lm.utils import load_model\nmodel, _ = load_model(here / 'checkpoint')",
    "mlx_vlm": "from mlx_vlm.utils import load_model\nmodel = load_model(here / 'checkpoint')",
    "model_file": """import importlib.util, sys  # the port's file, as a module of the installed mlx-lm
import mlx_lm.models
from mlx_lm.utils import load_model
file = (sys.argv[1:] or [{name}])[0]
mlx_lm.models.__path__.append(str(pathlib.Path(file).resolve().parent))  # what it imports beside it
spec = importlib.util.spec_from_file_location("mlx_lm.models.candidate", file)
port = importlib.util.module_from_spec(spec)
spec.loader.exec_module(port)
model, _ = load_model(here / 'checkpoint', get_model_classes=lambda config: (port.Model, port.ModelArgs))""",
    "module": """import importlib
port = importlib.import_module("{name}")
config = json.loads((here / 'checkpoint' / 'config.json').read_text())
model = port.Model((getattr(port, 'ModelArgs', None) or port.ModelConfig).from_dict(config))
weights = dict(mx.load(str(here / 'checkpoint' / 'model.safetensors')))
weights = model.sanitize(weights) if hasattr(model, 'sanitize') else weights
model.load_weights(list(weights.items()))""",
    "hf": """import torch, transformers
model = transformers.DeepseekV4ForCausalLM.from_pretrained(here / 'checkpoint').eval()""",
}
FEEDING = {
    "mlx": """cache = model.make_cache() if case["cached"] else None
feed = lambda x: model(mx.array(x), cache=cache)""",
    "mtp": """cache, later = (model.make_cache(), model.make_mtp_cache()) if case["cached"] else (None, None)
feed = lambda x: model.mtp_logits(model.streams(mx.array(x[:, :-1]), cache), mx.array(x[:, 1:]), later)""",
    "hf": """import inspect
name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
cache = transformers.DynamicCache(config=model.config) if case["cached"] else None
feed = lambda x: model(torch.from_numpy(x).long(), **{name: cache}, use_cache=case["cached"])""",
}
READING = {
    "mlx": "np.array(getattr(y, 'logits', y).astype(mx.float32))",
    "hf": "y.logits.detach().float().numpy()",
}
SCRIPT = '''"""{sentence}
Usage: python show.py{argument}
"""
import json, os, pathlib
os.environ.setdefault("MLX_ENABLE_TF32", "0")
import numpy as np
{imports}here = pathlib.Path(__file__).resolve().parent
{loading}
case = json.loads((here / "case.json").read_text())
ids, expected = np.load(here / "ids.npy"), np.load(here / "expected.npy")
{feeding}
{watching}got, start = [], 0
for tokens in case["calls"]:
    y = feed(ids[:, start : start + tokens{further}])
    got.append({reading})
    start += tokens
{unwatched}error = np.abs(np.concatenate(got, 1) - expected).max(-1)
for row, errors in enumerate(error):
    for token, worst in enumerate(errors):
        print(f"row {{row}} token {{token}}: largest error {{worst:.2e}}" + " <--" * bool(worst > case["limit"]))
print(f"limit: {{case['limit']:.2e}} (what rounding explains)")
'''
TELLING = {"mlx": "np.array(value.astype(mx.float32))", "hf": "value.detach().float().numpy()"}
WATCHING = """import sys
wrong, told = case["wrong"], []
at = f"{{wrong['file']}}:{{wrong['line']}}"
def tell(value):
    try:
        numbers = np.sort({telling}.ravel())
    except Exception:  # no array, or one that mx.compile has not computed yet
        return
    few = numbers[np.linspace(0, numbers.size - 1, len(wrong["expected"]) or 5).round().astype(int)]
    told.append(at)
    print(f"{{at}} {{wrong['gives']}} {{tuple(value.shape)}}:", *[f"{{one:.4g}}" for one in few])
    if wrong["expected"]:
        print("expected there in the gate's own run, of more tokens perhaps:", *wrong["expected"])
def trace(frame, event, argument):
    code, ran = frame.f_code, []
    if told or code.co_qualname != wrong["function"] or os.path.realpath(code.co_filename) != wrong["file"]:
        return None
    def step(frame, event, argument):
        if ran and not told and (event == "return" or not wrong["line"] <= frame.f_lineno <= wrong["end"]):
            returned = wrong["gives"] == "return" and event == "return"
            tell(argument if returned else frame.f_locals.get(wrong["gives"]))
        if event == "line" and frame.f_lineno == wrong["line"]:
            ran.append(True)
        return step
    return step
sys.settrace(trace)
"""
LIFE = '''"""{sentence}
Usage: python life.py{argument}
"""
import json, os, pathlib
os.environ.setdefault("MLX_ENABLE_TF32", "0")
{imports}
here = pathlib.Path(__file__).resolve().parent
{loading}
{helpers}

{lines}
'''
ARGUMENT = " [PATH/TO/THE/MODEL/FILE.py]"


def write(
    candidate: Candidate, engine: Engine, family: Family, cell: Cell, folder: Path, wrong: WrongLine | None = None
) -> Path:
    """Shrink the case of a red cell and write it. Raises BadInput where the folder cannot be written.

    wrong: the line of the candidate's that the script shows the value of (`wrong_line`).
    """
    calls = family.probe.calls_of(cell.schedule)
    with tempfile.TemporaryDirectory(prefix="parity-", ignore_cleanup_errors=True) as scratch:
        engine.load(family.write(Path(scratch, "checkpoint")))
        family, calls, cell, got = shrunk(engine, family, calls, cell)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        family.write(temporary / "checkpoint")
        supplied = {name for _, name in getattr(engine, "supplied", ())}
        rows, tokens = family.rows(cell.schedule), sum(calls)
        np.save(temporary / "ids.npy", family.ids[:rows].numpy().astype(np.int32))
        expected = family.exact[:rows]
        if got.shape[1] < tokens:  # it gives those of each call's last token
            expected = expected[:, ends_of(family, calls)]
        np.save(temporary / "expected.npy", expected.float().numpy())
        np.save(temporary / "got.npy", got)
        case = {
            "mechanism": cell.mechanism,
            "schedule": cell.schedule,
            "calls": list(calls),
            "cached": cell.schedule != "oneshot",
            "limit": cell.limit_max,
            "sentence": cell.sentence,
        }
        watched = _watched(wrong)
        if watched:
            case["wrong"] = watched
        (temporary / "case.json").write_text(json.dumps(case, indent=1) + "\n", encoding="utf-8")
        text = script(candidate, family, cell, tokens, supplied, watching=bool(watched))
        (temporary / "show.py").write_text(text, encoding="utf-8")
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BadInput(f"{folder} cannot be written ({error.strerror}); give --bundle another folder.") from error
    return folder


def write_life(candidate: Candidate, engine: Engine, family: Family, cell: Cell, folder: Path) -> Path:
    """The checkpoint and a script of the broken life of a cell. Raises BadInput where the folder cannot be written."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    supplied = {name for _, name in getattr(engine, "supplied", ())}
    text = LIFE.format(
        sentence=_quoted(f"{cell.mechanism}: {cell.sentence}"),
        argument=ARGUMENT if candidate.kind == "model_file" else "",
        imports=IMPORTS,
        loading=_loading(candidate, supplied),
        helpers=HELPERS,
        lines="\n".join(cell.life),
    )
    try:
        family.write(temporary / "checkpoint")
        (temporary / "life.py").write_text(text, encoding="utf-8")
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BadInput(f"{folder} cannot be written ({error.strerror}); give --bundle another folder.") from error
    return folder


def shrunk(
    engine: Engine, family: Family, calls: tuple[int, ...], cell: Cell
) -> tuple[Family, tuple[int, ...], Cell, np.ndarray]:
    """The fewest tokens, then the fewest calls, that still deviate."""
    best = _attempt(engine, family, calls, cell.schedule)
    if best is None:
        raise BadInput(f"{cell.mechanism} under {cell.schedule} does not fail again, so there is no case to write.")
    if best[2].first_token is not None:
        needed = best[2].first_token + 1
        best = _attempt(engine, family, _first(calls, needed), cell.schedule) or best
    while True:
        calls = best[1]
        merged = [(*calls[:i], calls[i] + calls[i + 1], *calls[i + 2 :]) for i in range(len(calls) - 1)]
        fewer = next((found for c in merged if (found := _attempt(engine, family, c, cell.schedule))), None)
        if fewer is None:
            return best
        best = fewer


def _attempt(engine: Engine, family: Family, calls: tuple[int, ...], schedule: str):
    """The case with these calls, if it still deviates in numbers."""
    tokens, probe = sum(calls), family.probe
    cut = dataclasses.replace(
        family,
        probe=dataclasses.replace(probe, tokens=tokens, chunks=calls, calls=()),
        ids=family.ids[:, : tokens + probe.mtp],
        exact=family.exact[:, :tokens],
        baseline=family.baseline[:, :tokens],
        nulls=[null[:, :tokens] for null in family.nulls],
        clear=family.clear[:, :tokens],
    )
    ids = cut.ids[: cut.rows(schedule)].numpy().astype(np.int32)
    try:
        got = (engine.mtp if probe.mtp else engine.run)(schedule, ids, calls, schedule != "oneshot")
    except CandidateProblem:
        return None
    cell = judge(cut, schedule, torch.from_numpy(got), calls)
    return (cut, calls, cell, got) if cell.verdict is Verdict.DIVERGES else None


def _first(calls: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """The calls of the first tokens."""
    taken = []
    for call in calls:
        if tokens > 0:
            taken.append(min(call, tokens))
            tokens -= call
    return tuple(taken)


def wrong_line(lines: Iterable[WrongLine], cell: Cell) -> WrongLine | None:
    """Of a report's answers the one on this cell's mechanism that says most: a line, a likely one, between two; this
    schedule first. None where there is none of them."""
    found = [one for one in lines if one.mechanism == cell.mechanism and _watched(one)]
    return min(found, key=lambda one: (KINDS_OF_LINE.index(one.kind), one.schedule != cell.schedule), default=None)


def _watched(wrong: WrongLine | None) -> dict | None:
    """What the script needs to know of it, where it names a statement and what that gives."""
    if wrong is None or wrong.kind == "not seen" or wrong.at is None or not wrong.gives:
        return None
    at = {"file": os.path.realpath(wrong.at.file), "line": wrong.at.line, "end": wrong.at.end}
    return at | {"function": wrong.at.function, "gives": wrong.gives, "expected": plain(wrong.expected)}


def script(
    candidate: Candidate,
    family: Family,
    cell: Cell,
    tokens: int,
    supplied: Iterable[str] = (),
    watching: bool = False,
) -> str:
    """show.py: loads the checkpoint with the port's own package and prints the error of each token. `supplied` are
    names of `typing` and the like that the port lacks. watching: whether it shows the value at the case's line too."""
    kind = "hf" if candidate.kind == "hf" else "mlx"
    mtp = family.probe.mtp
    return SCRIPT.format(
        sentence=_quoted(f"{cell.mechanism} ({family.probe.title}): {cell.sentence}"),
        argument=ARGUMENT if candidate.kind == "model_file" else "",
        imports="" if kind == "hf" else "import mlx.core as mx\n",
        loading=_loading(candidate, supplied),
        feeding=FEEDING["mtp" if mtp else kind],
        watching=WATCHING.format(telling=TELLING[kind]) if watching else "",
        unwatched="sys.settrace(None)\n" if watching else "",
        further=" + 1" if mtp else "",
        reading=READING[kind],
    )


def _quoted(sentence: str) -> str:
    """As it may stand in a docstring."""
    return sentence.replace("\\", "/").replace('"""', "'''")


def _loading(candidate: Candidate, supplied: Iterable[str]) -> str:
    """Lines that give `model`, the checkpoint's, by the port's own package."""
    name, before = candidate.name, ""
    if candidate.kind == "model_file":
        name = repr(str(Path(name).resolve()))
    elif candidate.kind == "module" and Path(name).is_file():
        target = resolve(name)
        name = target.module
        before = f"import sys\nsys.path.insert(0, {target.root!r})  # the port's package lies there\n"
    for lacked in sorted(supplied):
        source = source_of(lacked)
        before += f"import builtins, {source}  # the port lacks {lacked}\nbuiltins.{lacked} = {source}.{lacked}\n"
    return before + LOADING[candidate.kind].replace("{name}", name)
