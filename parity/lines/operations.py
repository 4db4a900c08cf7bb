"""Every operation that the reference does, what it gave and from what, whatever the layout."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

import reference_torch

from ..candidates.arrays import LARGEST, SMALLEST

GIVEN = "given"
OWN = str(Path(reference_torch.__file__).parent)
# What only lays the same numbers out anew.
VIEWS = {"view", "_unsafe_view", "permute", "transpose", "t", "unsqueeze", "squeeze", "detach", "clone", "alias"}


@dataclass(frozen=True, eq=False)
class Called:
    """One call of a function of the reference: its file's name and its own."""

    file: str
    function: str


@dataclass(frozen=True, eq=False)
class Operation:
    """What an operation gave, sorted and as it lies, and from what: keys of its inputs, each that of the sorted
    numbers, and plain numbers. An operation GIVEN is what no operation gave: weights, token ids. where: the calls that
    it was done in, the nearest first, and their lines. given: the inputs' keys in order. shape: of what it gave.
    boolean: whether that is truth values."""

    name: str
    value: np.ndarray
    laid: np.ndarray
    key: str
    inputs: frozenset[str]
    numbers: tuple[float, ...] = ()
    where: tuple[tuple[Called, int], ...] = ()
    given: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    boolean: bool = False

    @property
    def short(self) -> str:
        """As torch calls it, without its overload."""
        return self.name.split(".")[1 if self.name.startswith("aten.") else 0]

    @property
    def plain(self) -> bool:
        """Whether all that it gave is equal, and proves nothing."""
        return bool(self.value[0] == self.value[-1])


class _Recorder(TorchDispatchMode):
    """Keeps what every operation gives."""

    def __init__(self):
        super().__init__()
        self.operations: list[Operation] = []
        self.seen: set[str] = set()
        self.sorted = WeakIdKeyDictionary()  # tensors: their numbers in order, and the key of these
        self.calls: dict[int, tuple[FrameType, Called]] = {}  # by the identity of their frame, which is kept alive

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False keeps torch from importing its compiler, which takes longer than a run."""
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        given = [self._input(one) for one in leaves if fits(one)]
        numbers = tuple(number for one in leaves for number in _numbers(one))
        out, where = function(*args, **(kwargs or {})), self._where(sys._getframe(1))
        name = function.overloadpacket.__name__
        if function._schema.is_mutable:  # and so may be what shares its memory
            self.sorted = WeakIdKeyDictionary()
        for one in out if isinstance(out, (tuple, list)) else (out,):
            if fits(one):
                same = name in VIEWS and len(given) == 1 and one.numel() == len(given[0][0])
                self.sorted[one] = value, key = given[0] if same else in_order(one)
                keys = tuple(one for _, one in given)
                kind = (*one.shape,), one.dtype is torch.bool
                done = str(function), value, _laid(one), key, frozenset(keys), numbers, where, keys, *kind
                self.operations.append(Operation(*done))
                self.seen.add(key)
        return out

    def _where(self, frame: FrameType | None) -> tuple[tuple[Called, int], ...]:
        found = []
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(OWN):
                if id(frame) not in self.calls:
                    self.calls[id(frame)] = frame, Called(Path(code.co_filename).name, code.co_qualname)
                found.append((self.calls[id(frame)][1], frame.f_lineno))
            frame = frame.f_back
        return tuple(found)

    def _input(self, tensor: Tensor) -> tuple[np.ndarray, str]:
        """What an operation reads; if no operation gave it, it is one of its own."""
        if tensor not in self.sorted:
            self.sorted[tensor] = in_order(tensor)
        value, key = self.sorted[tensor]
        if key not in self.seen:
            self.seen.add(key)
            self.operations.append(Operation(GIVEN, value, _laid(tensor), key, frozenset()))
        return value, key


def recorded(run: Callable[[], object]) -> list[Operation]:
    """All operations of a run, in order."""
    recorder = _Recorder()
    with recorder, torch.no_grad():
        run()
    return recorder.operations


def in_order(tensor: Tensor) -> tuple[np.ndarray, str]:
    """All its numbers, float64, in order, and a key that is equal for the same numbers in any layout."""
    value = np.sort(tensor.detach().double().numpy().ravel())
    return value, key_of(value)


def key_of(value: np.ndarray) -> str:
    """The key of sorted numbers."""
    return hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()


def _laid(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().ravel()


def fits(one: object) -> bool:
    """Whether it is a tensor of a size that can be compared."""
    return isinstance(one, Tensor) and not one.is_meta and SMALLEST <= one.numel() < LARGEST


def _numbers(one: object) -> list[float]:
    if isinstance(one, Tensor) and not one.is_meta and one.numel() < SMALLEST:
        return one.detach().double().ravel().tolist()
    return [float(one)] if isinstance(one, (int, float)) else []
