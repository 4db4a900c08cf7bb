"""In which family's names, and in which form, a candidate takes its checkpoints: as published, else as converted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
from torch import Tensor

from dsv4_checkpoints import FAMILIES, Stored
from dsv4_mlx import ModelArgs
from dsv4_mlx.checkpoint import DTYPES, reading_of
from dsv4_mlx.conversion import KEEP, Writer, write_config

from ..candidates.adapters.problems import CandidateProblem, NotOffered, Raised
from ..judging.sides import to_mlx
from .families import Family
from .probes import Probe, packed
from .results import Loading

PUBLISHED = "F1"
TRIED = (PUBLISHED, "F3", "F2", "F8", "F4")
PLAIN, EXPERTS, PACKED = FORMS = ("plain", "experts packed", "packed")


def in_form(probe: Probe, form: str) -> Probe:
    """The probe with weights as ports want them that take no plain ones."""
    packed_already, odd = "quantization_config" in probe.config, probe.config["hidden_size"] % 32
    if form == PLAIN or packed_already or odd:  # fp4 has a scale for 32 numbers
        return probe
    return packed.in_form(probe, experts_only=form == EXPERTS)


class _Held(dict):
    """Tensors in memory, as the writer of conversions takes them."""

    @property
    def stored(self) -> dict[str, Stored]:
        return {name: Stored(DTYPES[value.dtype], value.shape) for name, value in self.items()}

    def forget(self) -> None:
        """There is no file to close."""


def write_as(family: str, config: dict, tensors: dict[str, Tensor], folder: Path) -> Path:
    """Published tensors as a conversion of a family, plain numbers as they are; packed ones packed, if MLX can."""
    held = _Held({name: to_mlx(value) for name, value in tensors.items()})
    args = ModelArgs.from_dict(dict(config))
    wide = held["embed.weight"].dtype == mx.float32
    keep = None if FAMILIES[family].packing == "none" else KEEP
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(
        folder,
        reading_of(held.stored, args),
        FAMILIES[family],
        args.o_groups,
        mx.float32 if wide else mx.bfloat16,
        lambda name, published: keep,
        shards=1,
    )
    writer.write(held, lambda text: None)
    write_config(folder, config, writer.formats)
    return folder


def find(
    engine, family: Callable[[str], Family], folder: Path, names: tuple[str, ...] = TRIED
) -> tuple[tuple[str, str] | None, list[Loading]]:
    """The first (names, form) in which the candidate loads a probe, or None, and what it did with each that was tried.

    `family` gives the probe in a form. Where something else than its checkpoint is wrong (it dies, hangs, lacks
    imports) the published names, so that the probes say it.
    """
    tried: list[Loading] = []
    for form, name in ((form, name) for form in FORMS for name in names):
        if form != PLAIN and FAMILIES[name].packing == "none":
            continue
        problem = load(engine, replace(family(form), spelling=name), folder)
        if problem is not None and not isinstance(problem, Raised):
            return (PUBLISHED, PLAIN), []
        tried.append(_entry(name, form, problem))
        if problem is None:
            rest = [one for one in names if one not in {was.family for was in tried}]
            return (name, form), tried + [Loading(one, FAMILIES[one].title, "not tried") for one in rest]
    return None, tried


def load(engine, family: Family, folder: Path) -> CandidateProblem | None:
    """Write the checkpoint, load it; what went wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        engine.load(family.write(folder))
    except CandidateProblem as problem:
        return problem
    return None


def load_packed(engine, family: Family, folder: Path, loading: list[Loading]) -> None:
    """Load a probe of packed weights, in the published names or else in those of a conversion, and add to `loading`
    what came of it. Raises CandidateProblem; NotOffered where the candidate takes them in no form."""
    for name in dict.fromkeys((PUBLISHED, family.spelling, "F2")):
        problem = None
        if FAMILIES[name].packing != "none" or name == PUBLISHED:
            problem = load(engine, replace(family, spelling=name), folder)
            if problem is not None and not isinstance(problem, Raised):
                raise problem
            known = next((one for one in loading if one.family == name), None)
            if known is None:
                loading.append(_entry(name, PACKED, problem))
            elif problem is not None and known.state == "loads":
                known.state, known.sentence = "does not load", f"{family.probe.mechanism}: {problem}"
            if problem is None:
                return
    said = next(one for one in loading if one.family == PUBLISHED).sentence
    raise NotOffered(f"packed weights do not load: {said}")


def _entry(name: str, form: str, problem: CandidateProblem | None) -> Loading:
    said = "" if problem is None else str(problem)
    return Loading(name, FAMILIES[name].title, "loads" if problem is None else "does not load", said, form)
