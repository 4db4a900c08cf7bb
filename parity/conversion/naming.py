"""What is wrong with a tensor that rounding does not explain: which other tensor it holds, how its values are off."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from dsv4_checkpoints import CheckpointError, Format
from reference_torch.checkpoint import parameter

from ..streamed.source import Source
from .honest import in_groups
from .weights import Taken, Weights

ALIKE = 0.8  # correlation of two tensors of which one is the other, rounded to two bits or more
MOST = 0.9  # of the error is one factor's, where a tensor is said to be a multiple of the original's
SAMPLE = 1 << 16  # values that tell it
EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(w[123])\.weight")


def name_it(weights: Weights, taken: Taken) -> str:
    """A clause about this tensor: "holds layers.0.ffn.experts.3.w1.weight of the original", ..."""
    want, got, compared = taken.original, taken.converted, taken.compared
    if not want.is_floating_point():
        return _of_table(taken)
    if not got.any() or (got == got.flatten()[0]).all():
        value = float(got.flatten()[0])
        return f"is {value:g} everywhere, where the original is not"
    stored, _ = weights.format(compared.name)
    if compared.wrong > compared.groups / 2 and correlation(*(_centred(x, stored) for x in (want, got))) < ALIKE:
        if want.ndim == 2 and want.shape[0] == want.shape[1] and correlation(want.T, got) > ALIKE:
            return "is the original's, transposed"
        other = held(weights, compared.name, got)
        if other:
            return f"holds the original's {other}"
        return "holds other values than the original's, of no tensor that was looked at"
    off = _off(weights, taken)
    many = f"{compared.wrong} of {compared.groups} groups" if compared.wrong else "all groups together"
    by = f"{compared.ratio:.3g} times its limit of what rounding to {compared.stored} leaves"
    return f"{off}; {many} beyond, the worst {by}"


def _centred(values: Tensor, stored: Format) -> Tensor:
    """Without the means of groups, as they are where biases are wrong."""
    groups = in_groups(values, stored)
    return groups - groups.mean(-1, keepdim=True) if values.ndim > 1 else values


def correlation(want: Tensor, got: Tensor) -> float:
    """Cosine of the two over a sample, their means taken away."""
    every = max(want.numel() // SAMPLE, 1)
    want, got = (x.contiguous().flatten()[::every].double() for x in (want, got))
    want, got = want - want.mean(), got - got.mean()
    norms = float(want.norm() * got.norm())
    return float(want @ got) / norms if norms > 0 else 0.0


def held(weights: Weights, name: str, got: Tensor) -> str | None:
    """The tensor of the original whose values these are; its expert's others, its namesakes of other experts and of
    other layers come first. A stage reads so many in all, since a whole layer may be wrong."""
    original = weights.original
    for other in _alike(original, name):
        if not weights.searches:
            return None
        weights.searches -= 1
        try:
            want = parameter(original.reading, other, original, torch.float32)
        except CheckpointError:
            continue
        if want.shape == got.shape and correlation(want, got) > ALIKE:
            return other
    return None


def _alike(original: Source, name: str) -> Iterator[str]:
    shape, slots = original.reading.slots[name].shape, original.reading.slots
    same = [other for other, slot in slots.items() if other != name and slot.shape == shape and slot.is_matrix]
    same += [other for other, slot in slots.items() if other != name and slot.shape == shape and not slot.is_matrix]
    here, local = name.split(".")[:2], ".".join(name.split(".")[2:])
    leaf = EXPERT.sub(r"\3", name)

    expert = EXPERT.sub(r"\1\2", name)

    def far(other: str) -> tuple[int, bool]:
        if EXPERT.fullmatch(other) and EXPERT.sub(r"\1\2", other) == expert:  # gate and up of one expert, swapped
            return -1, False
        elsewhere, another = other.split(".")[:2] != here, EXPERT.sub(r"\3", other) != leaf
        return elsewhere + 2 * another, ".".join(other.split(".")[2:]) != local

    return iter(sorted(same, key=far))


def _of_table(taken: Taken) -> str:
    want, got, compared = taken.original, taken.converted, taken.compared
    experts = int(want.max()) + 1
    for by in (-1, 1):
        if torch.equal(got, want.roll(by, 0)) or torch.equal(got[1:-1], want.roll(by, 0)[1:-1]):
            return f"is the original's moved by one row ({'up' if by < 0 else 'down'})"
        if torch.equal(got, (want + by) % experts):
            return f"names experts whose numbers are {abs(by)} too {'high' if by > 0 else 'low'}"
    row = taken.worst // want.shape[-1]
    return f"differs from the original in {compared.wrong} of {compared.groups} entries, first in row {row}"


def _off(weights: Weights, taken: Taken) -> str:
    """How the worst group's values are off, and where it lies."""
    compared = taken.compared
    if taken.original.ndim == 1:
        at = taken.worst
        return f"entry {at} is {float(taken.converted[at]):g} where the original has {float(taken.original[at]):g}"
    stored, _ = weights.format(compared.name)
    by_gain = (compared.gain - 1) ** 2 * compared.signal / compared.noise
    if not compared.wrong or by_gain > MOST:
        return f"its values are {compared.gain:.2g} times the original's"
    want, got = (in_groups(x, stored)[taken.worst].double() for x in (taken.original, taken.converted))
    per_row = len(in_groups(taken.original[:1], stored))
    row, group = divmod(taken.worst, per_row)
    row += taken.first_row
    size = in_groups(taken.original[:1], stored).shape[-1]
    about = want - want.mean()
    slope = float(about @ (got - got.mean()) / about.square().sum()) if about.any() else 1.0
    shift = float(got.mean() - want.mean() * slope)
    where = f"row {row}, columns {group * size} to {min((group + 1) * size, taken.original.shape[-1]) - 1}"
    return f"in {where} values are {slope:.3g} times the original's, moved by {shift:.3g}"
