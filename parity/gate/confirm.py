"""Asking a candidate again: with mx.compile at work; and where it is red, looking inside it for the reference's
tensors, found among what its modules return by their values, since nobody knows the names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..candidates.adapters.problems import CandidateProblem
from ..candidates.surroundings import can_compile
from ..judging.found import closest
from ..judging.oracle import NULLS
from ..judging.rounding import OtherRounding
from ..judging.runs import forward
from ..judging.taps import recording
from ..judging.tolerance import measure
from ..results import Verdict
from . import playing
from .families import Family
from .matrix import Engine, ask, judge
from .results import Cell, LayerError

# Modules of the reference whose outputs other ports have as modules' outputs too.
TAPPED = re.compile(
    r"embed|layers\.\d+(\.(attn_norm|ffn_norm|attn|ffn|attn\.(wq_a|q_norm|wq_b|wkv|kv_norm|wo_b|compressor)))?|norm|head"
)


def compiles(engine: Engine, device: str = "") -> bool:
    """Whether the port is asked with mx.compile at work; of a recording, whether it was."""
    return engine.compiles if isinstance(engine, playing.Player) else can_compile(device)


def confirm_compiled(engine: Engine, whole: Family, cells: list[Cell], folder: Path) -> list[str]:
    """What agrees in a whole model must agree when mx.compile is at work too: cells that do not are replaced. Notes on
    what a recording lacks."""
    notes = []
    for index, cell in enumerate(cells):
        if cell.mechanism != whole.probe.mechanism or cell.verdict is not Verdict.PARITY:
            continue
        try:
            engine.load(whole.write(folder / f"compiled-{cell.schedule}"))
            with engine.compiled():
                again = judge(whole, cell.schedule, ask(engine, whole, cell.schedule))
        except playing.NotRecorded:
            notes.append(f"{cell.mechanism} under {cell.schedule} was not recorded with mx.compile at work.")
            continue
        except CandidateProblem as problem:
            again = replace(cell, verdict=Verdict.CRASHED, sentence=f"fails: {problem}")
        if again.verdict is not Verdict.PARITY:
            again.sentence = f"with mx.compile at work, and only then, {again.sentence}"
            cells[index] = again
    return notes


def layer_errors(engine, family: Family) -> list[LayerError]:
    """For each tensor of the reference on the probe's first sequence the candidate's closest output.

    `engine` has the probe's checkpoint loaded. Raises CandidateProblem.
    """
    ids = family.ids[:1, : family.probe.tokens]
    given = [(tap["path"], np.asarray(tap["array"])) for tap in engine.taps(ids.numpy().astype(np.int32))]
    exact, baseline, *nulls = reference_taps(family, ids)
    errors = []
    for name, truth in exact.items():
        module, error = closest(truth, given)
        m = measure(truth, baseline[name], [null[name] for null in nulls], baseline[name], family.probe.dtype)
        layer = re.match(r"layers\.(\d+)", name)
        index = int(layer[1]) if layer else (-1 if name == "embed" else family.probe.config["num_hidden_layers"])
        errors.append(LayerError(name, index, module, error, m.limit_rms / m.scale if m.scale else 0.0))
    return errors


def reference_taps(family: Family, ids: Tensor) -> list[dict[str, Tensor]]:
    """The reference's module outputs on ids: exactly, in the probe's type, and with other rounding."""
    probe = family.probe
    sides = [family.side(dtype) for dtype in ("float64", probe.dtype)]
    runs = [_recorded(side.model, ids) for side in sides]
    for index, sequential in enumerate(NULLS[probe.dtype]):
        with OtherRounding(index, sequential):
            runs.append(_recorded(sides[1].model, ids))
    return runs


def _recorded(model, ids: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_modules() if TAPPED.fullmatch(name)]
    with recording(model, {name: (name, "") for name in names}) as record, torch.no_grad():
        forward(model, ids, ())
    return {name: record[name][0] for name in sorted(names, key=_order) if record[name]}


def _order(name: str) -> tuple:
    """From the embedding through the layers to the head; within a layer as it computes."""
    inside = ("attn_norm", "attn.wq_a", "attn.q_norm", "attn.wq_b", "attn.wkv", "attn.kv_norm", "attn.compressor")
    inside = (*inside, "attn.wo_b", "attn", "ffn_norm", "ffn", "")
    layer = re.match(r"layers\.(\d+)\.?(.*)", name)
    if layer:
        return 1, int(layer[1]), inside.index(layer[2])
    return ("embed", "", "norm", "head").index(name), 0, 0
