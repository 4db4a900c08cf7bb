"""The same maths with other rounding: what two correct programs may differ by (the null of the method, section 2).

`OtherRounding` is a torch function mode. Inside it, every contraction (matrix products, einsum, sums, means, softmax)
runs with its axis permuted and added up piece by piece instead of in the library's own blocks, and every
transcendental function in float32 or float64 returns a neighbouring value at random, because no two maths libraries
round those alike. Functions built on exp also read a neighbouring argument: many libraries compute 2^(x log2 e), and
rounding that product costs a relative error of |x| half ulps (measured: 3.8e-6 for MLX at x = -87, 6e-8 for PyTorch).
Their subnormal results become 0, as in MLX: weights that are normalised by a sum of such scores are then 0/0, and what
is undefined in the null is no claim about a candidate.

On a device whose errors are larger than these, they are added where they arise (`noise.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import noise

# exp, cos and the like are specified to within an ulp or two by every maths library in use; one ulp each way is the
# mild end.
TRANSCENDENTAL = frozenset("exp sigmoid rsqrt sqrt softplus silu cos sin".split())
BUILT_ON_EXP = frozenset("exp sigmoid softplus silu".split())
# Another bfloat16 program keeps a value wide where this one rounds it, or the other way round, so its roundings fall
# otherwise at first and are a draw of their own after a few layers. Moving what is rounded by up to a quarter of a
# step does the same; it adds 2 to 12 % to the RMS of a single rounding.
BFLOAT16_SHIFT = 2.0**-10
MOST_PIECES = 32  # beyond 32 partial sums, the spread no longer grows by as much as the run costs
MOST_BLOCKS = 16  # of neighbouring columns; see OtherBlocks


class OtherRounding(TorchFunctionMode):
    """One member of the null: `seed` draws the permutations, `sequential` adds one term at a time instead of a random
    number."""

    def __init__(self, seed: int, sequential: bool):
        super().__init__()
        self.random = torch.Generator().manual_seed(seed)
        self.sequential = sequential
        self.noise, self.seed = noise.active(), seed

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "linear":
            return self._product(self._linear(function, *args, **kwargs), function, *args)
        if name == "matmul":
            a, b = args
            total = self._contract(a.shape[-1], lambda take: function(a[..., take], b[..., take, :]))
            return self._product(total, function, a, b)
        if name == "einsum":
            total = self._einsum(function, *args)
            return self._product(total, lambda a, b: function(args[0], a, b), *args[1:])
        if name in ("sum", "mean") and _reduces_one_axis(args, kwargs):
            return self._reduce(function, name, *args, **kwargs)
        if name == "softmax":
            return self._softmax(function, *args, **kwargs)
        if name == "to" and args[0].dtype in (torch.float32, torch.float64):
            return self._rounded(function, *args, **kwargs)
        read = args
        if name in BUILT_ON_EXP and args[0].dtype in (torch.float32, torch.float64):
            args = (self._neighbour(args[0]), *args[1:])
        result = function(*args, **kwargs)
        if name in TRANSCENDENTAL and isinstance(result, Tensor) and result.dtype in (torch.float32, torch.float64):
            return self._off(name, read[0], self._neighbour(result))
        return result

    def _contract(self, length: int, part):
        """Sum of part(indices) over a random partition of range(length) into random pieces, added one after the
        other."""
        order = torch.randperm(length, generator=self.random)
        most = min(length, MOST_PIECES)
        pieces = most if self.sequential else int(torch.randint(1, most + 1, (), generator=self.random)) if most else 1
        total = None
        for take in order.tensor_split(max(pieces, 1)):
            total = part(take) if total is None else total + part(take)
        return total

    def _linear(self, function, x, weight):
        return self._contract(x.shape[-1], lambda take: function(x[..., take], weight[:, take]))

    def _einsum(self, function, equation, a, b):
        left, right = equation.split("->")[0].split(",")
        summed = next(letter for letter in left if letter in right and letter not in equation.split("->")[1])
        axis_a, axis_b = left.index(summed), right.index(summed)
        return self._contract(
            a.shape[axis_a], lambda take: function(equation, a.index_select(axis_a, take), b.index_select(axis_b, take))
        )

    def _reduce(self, function, name, x, axis, keepdim=False):
        total = self._contract(x.shape[axis], lambda take: x.index_select(axis, take).sum(axis, keepdim=keepdim))
        level = self.noise.level("sum", x.dtype) if self.noise else 0.0
        if level:
            total = self._spread(total, x.square().sum(axis, keepdim=keepdim).sqrt(), level)
        return total / x.shape[axis] if name == "mean" else total

    def _softmax(self, function, x, axis):
        order = torch.randperm(x.shape[axis], generator=self.random)
        shifted = self._neighbour((x - x.amax(axis, keepdim=True)).clamp_min(torch.finfo(x.dtype).min))
        weights = function(shifted.index_select(axis, order), axis).index_select(axis, order.argsort())
        return self._off("softmax", shifted, self._neighbour(weights))

    def _product(self, total, function, a, b):
        """A product's result with the device's error: in proportion to its terms, as the device was measured."""
        level = self.noise.level("product", total.dtype) if self.noise else 0.0
        return self._spread(total, function(a.square(), b.square()).sqrt(), level) if level else total

    def _spread(self, total, spread, level: float):
        size = torch.maximum(total.abs(), spread) * level
        return total + size * torch.randn(total.shape, generator=self.random, dtype=total.dtype)

    def _off(self, name: str, x, result):
        """A function's result with the device's error."""
        off = self.noise.of_function(name, x, result, self.seed) if self.noise else None
        return result if off is None else result + off.masked_fill(~off.isfinite(), 0)

    def _rounded(self, function, x, *args, **kwargs):
        """A rounding to bfloat16 that falls otherwise where the value lies within an eighth to a quarter of a step of
        a midpoint."""
        result = function(x, *args, **kwargs)
        if result.dtype != torch.bfloat16:
            return result
        off = torch.rand(x.shape, generator=self.random, dtype=x.dtype) * 2 - 1
        return function(x * (1 + off * BFLOAT16_SHIFT), *args, **kwargs)

    def _neighbour(self, x: Tensor) -> Tensor:
        step = torch.randint(-1, 2, x.shape, generator=self.random).to(x.dtype)
        moved = torch.where(x == 1, x, x * (1 + step * torch.finfo(x.dtype).eps))
        return moved.masked_fill(x.abs() < torch.finfo(x.dtype).smallest_normal, 0)


class OtherBlocks(OtherRounding):
    """`OtherRounding` whose products with a matrix leave every column where it is: neighbouring columns are added up
    in blocks of random widths, the blocks in random order.

    To gather the columns of a matrix costs twenty times its product with a few tokens. Errors lie between those of
    the library's own order and those of gathered columns (measured: `tests/test_rounding.py`).
    """

    def _linear(self, function, x, weight):
        length = x.shape[-1]
        most = min(length, MOST_PIECES if self.sequential else MOST_BLOCKS)
        if most < 2:
            return function(x, weight)
        blocks = most if self.sequential else int(torch.randint(2, most + 1, (), generator=self.random))
        cuts = torch.randperm(length - 1, generator=self.random)[: blocks - 1].sort()[0] + 1
        ends = [0, *cuts.tolist(), length]
        total = None
        for block in torch.randperm(blocks, generator=self.random).tolist():
            take = slice(ends[block], ends[block + 1])
            part = function(x[..., take], weight[:, take])
            total = part if total is None else total + part
        return total


def _reduces_one_axis(args, kwargs) -> bool:
    return len(args) == 2 and isinstance(args[1], int) and args[0].is_floating_point() and args[0].shape[args[1]] > 0
