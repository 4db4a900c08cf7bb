"""In which family's names a candidate takes its checkpoints: the published ones, else those of a conversion."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
from torch import Tensor

from dsv4_checkpoints import FAMILIES, Stored
from dsv4_mlx import ModelArgs
from dsv4_mlx.checkpoint import DTYPES, reading_of
from dsv4_mlx.conversion import KEEP, Writer, write_config

from ..candidates.adapters.problems import CandidateProblem, Raised
from ..judging.sides import to_mlx
from .results import Loading

PUBLISHED = "F1"
TRIED = (PUBLISHED, "F3", "F2", "F8", "F4")


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


def lost_packing(family, folder: Path) -> bool:
    """Whether a probe of packed weights was written without any: Hugging Face's names have none, MLX not all sides."""
    if family.spelling == PUBLISHED or "quantization_config" not in family.probe.config:
        return False
    return "quantization" not in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def find(engine, family, folder: Path, families: tuple[str, ...] = TRIED) -> tuple[str | None, list[Loading]]:
    """The first of these families of names that the candidate loads a probe in, or None, and what it did with each.

    Where something else than names is wrong (it dies, hangs, lacks imports) the published ones, so that probes say it.
    """
    tried: list[Loading] = []
    for name in families:
        try:
            engine.load(replace(family, spelling=name).write(folder))
        except Raised as problem:
            tried.append(Loading(name, FAMILIES[name].title, "does not load", str(problem)))
        except CandidateProblem:  # dies, hangs, lacks imports: no matter of names
            return PUBLISHED, []
        else:
            tried.append(Loading(name, FAMILIES[name].title, "loads"))
            rest = [one for one in TRIED if one not in {was.family for was in tried}]
            return name, tried + [Loading(one, FAMILIES[one].title, "not tried") for one in rest]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return None, tried
