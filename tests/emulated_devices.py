"""MLX on its CPU with the errors of other devices, for tests; no such device is needed.

    with EMULATED["metal_worst"].on():
        ...

Inside, functions of `mlx.core`, of its arrays and of `mx.fast` are replaced by ones with an added error:

metal_worst  what Apple's Metal Shading Language Specification allows its fast maths: sin and cos an absolute error of
             2^-13 in [-pi, pi] (beyond, here, in proportion to the argument), exp 3 + floor(abs(2x)) ulps; these act
             in rope, sigmoid, softmax and attention too
metal_tenth  a tenth of each
tf32         float32 operands of products rounded to 10 bits of mantissa
reordered    float32 sums and products in another order: pieces of a permutation, one after the other
flushed      float32 results below the smallest normal number are 0

Every error has its full size and a sign that the argument's bits decide, so that a function stays a function. What is
put in can also be computed without MLX: `error_put_in`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from parity.devices.measuring import figure, measure, ulp, wide
from parity.devices.primitives import Exact, Primitive
from parity.devices.results import Calibration, Device
from parity.judging.noise import DeviceNoise

ALLOWED_WAVE = 2.0**-13
PIECES = 32
SMALLEST = 2.0**-126
FUNCTIONS = {"exp": np.exp, "sin": np.sin, "cos": np.cos}
# The package's own ones, whatever is replaced.
MATMUL, GATHER_MM, SUM, MEAN = mx.matmul, mx.gather_mm, mx.sum, mx.mean
ATTENTION = mx.fast.scaled_dot_product_attention
QUANTISED, GATHER_QMM = mx.quantized_matmul, mx.gather_qmm


@dataclass(frozen=True)
class Emulated:
    """`functions` maps (owner, name) to what stands there inside of `on`; `maths` and `result` say the same of
    float64 numbers."""

    functions: dict[tuple[object, str], Callable]
    maths: Exact
    result: Callable[[np.ndarray], np.ndarray] = lambda x: x

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        before = {(owner, name): getattr(owner, name) for owner, name in self.functions}
        try:
            for (owner, name), function in self.functions.items():
                setattr(owner, name, function)
            yield
        finally:
            for (owner, name), function in before.items():
                setattr(owner, name, function)

    def error_put_in(self, primitive: Primitive, dtype: str, given: dict[str, np.ndarray]):
        """The figure of a result that is exact but for the added errors."""
        with np.errstate(all="ignore"):
            value, _ = primitive.truth(self.maths, **wide(given))
        return figure(primitive, dtype, given, self.result(value))


def as_methods(functions: dict[str, Callable]) -> dict[tuple[object, str], Callable]:
    """Functions of `mlx.core` by name, and those that its arrays have under the same name."""
    methods = {(mx.array, name): function for name, function in functions.items() if hasattr(mx.array, name)}
    return {(mx, name): function for name, function in functions.items()} | methods


# --- Metal's fast maths ------------------------------------------------------------------------------------------


def signs(x: np.ndarray, salt: int) -> np.ndarray:
    """1 or -1 by the bits of the argument."""
    bits = x.astype(np.float32).view(np.uint32) * np.uint32(2654435761) + np.uint32(salt * 40503)
    return 1.0 - 2.0 * ((bits ^ (bits >> np.uint32(15))) * np.uint32(2246822519) >> np.uint32(31))


class Fast(Exact):
    """exp, sin and cos with this share of the error that Apple allows."""

    def __init__(self, share: float):
        self.share = share

    def exp(self, x):
        y = np.exp(x)
        return y + signs(x, 0) * self.share * (3 + np.floor(np.abs(2 * x))) * ulp(y, "float32")

    def sin(self, x):
        return np.sin(x) + signs(x, 1) * self._wave(x)

    def cos(self, x):
        return np.cos(x) + signs(x, 2) * self._wave(x)

    def _wave(self, x):
        return self.share * ALLOWED_WAVE * np.maximum(1, np.abs(x) / np.pi)


def metal(share: float) -> Emulated:
    """Fast maths with this share of the allowed errors."""
    fast = Fast(share)

    def elementwise(function):
        """A float64 function as one of MLX, rounded once to float32 and then to the argument's type."""

        def compute(x, *, stream=None):
            x = mx.array(x) if not isinstance(x, mx.array) else x
            with np.errstate(all="ignore"):
                y = function(np.array(x.astype(mx.float32)).astype(np.float64)).astype(np.float32)
            return mx.array(y).astype(x.dtype if mx.issubdtype(x.dtype, mx.floating) else mx.float32)

        return compute

    exp = elementwise(lambda x: np.where(np.isfinite(x), fast.exp(x), np.exp(x)))

    def sigmoid(x):
        small = fast.exp(-np.abs(x))
        return np.where(x < 0, small, 1) / (1 + small)

    def softmax(x, axis=None, *, precise=False, stream=None):
        axis = tuple(range(x.ndim)) if axis is None else axis
        wide = x.astype(mx.float32)
        weights = exp(wide - wide.max(axis=axis, keepdims=True))
        return (weights / SUM(weights, axis=axis, keepdims=True)).astype(x.dtype)

    cos, sin = elementwise(fast.cos), elementwise(fast.sin)

    def rope(x, dims, *, traditional, base, scale, offset, freqs=None, stream=None):
        freqs = base ** (2 * mx.arange(dims // 2) / dims) if freqs is None else freqs
        offset = mx.array(offset).reshape(-1, *[1] * (x.ndim - 1))
        angles = (offset + mx.arange(x.shape[-2])[:, None]) * scale / freqs
        turned, rest = mx.split(x.astype(mx.float32), [dims], axis=-1)
        a, b = (turned[..., ::2], turned[..., 1::2]) if traditional else mx.split(turned, 2, axis=-1)
        pair = [a * cos(angles) - b * sin(angles), a * sin(angles) + b * cos(angles)]
        turned = mx.stack(pair, axis=-1).reshape(turned.shape) if traditional else mx.concatenate(pair, axis=-1)
        return mx.concatenate([turned, rest], axis=-1).astype(x.dtype)

    functions = {"exp": exp, "sin": sin, "cos": cos, "sigmoid": elementwise(sigmoid), "softmax": softmax}
    fused = {"rope": rope, "scaled_dot_product_attention": attention(MATMUL, lambda x: softmax(x, -1))}
    return Emulated(as_methods(functions) | {(mx.fast, name): function for name, function in fused.items()}, fast)


def attention(matmul: Callable, softmax: Callable) -> Callable:
    """`mx.fast.scaled_dot_product_attention` of float32 arrays out of these; bfloat16 goes the package's own way, where
    its roundings are larger than all that is emulated here."""

    def attend(q, k, v, *, scale, mask=None, sinks=None, stream=None, **others):
        if q.dtype != mx.float32:
            return ATTENTION(q, k, v, scale=scale, mask=mask, sinks=sinks, **others)
        k, v = (mx.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
        scores = matmul(q * scale, k.swapaxes(-1, -2))
        if isinstance(mask, str):  # "causal": the last queries see all keys
            mask = mx.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2]).astype(mx.bool_)
        if mask is not None:
            scores = mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
        if sinks is not None:
            sink = mx.broadcast_to(sinks.reshape(-1, 1, 1).astype(mx.float32), (*scores.shape[:-1], 1))
            return matmul(softmax(mx.concatenate([scores, sink], axis=-1))[..., :-1], v)
        return matmul(softmax(scores), v)

    return attend


# --- products and sums -------------------------------------------------------------------------------------------


def products(matmul: Callable, gathered: Callable) -> dict[tuple[object, str], Callable]:
    """Every product of float32 arrays by these two; others as they were."""

    def any_type(ours, original):
        return lambda a, b, *rest, **others: (
            ours(a, b, *rest, **others) if a.dtype == mx.float32 else original(a, b, *rest, **others)
        )

    def quantised(x, w, scales, biases=None, transpose=True, group_size=None, bits=None, mode="affine", stream=None):
        settings = {"group_size": group_size, "bits": bits, "mode": mode}
        if x.dtype != mx.float32:
            return QUANTISED(x, w, scales, biases, transpose=transpose, **settings)
        w = mx.dequantize(w, scales, biases, **settings)
        return matmul(x, w.swapaxes(-1, -2) if transpose else w)

    def gathered_quantised(x, w, scales, biases=None, lhs_indices=None, rhs_indices=None, transpose=True, **settings):
        if x.dtype != mx.float32:
            indices = {"lhs_indices": lhs_indices, "rhs_indices": rhs_indices}
            return GATHER_QMM(x, w, scales, biases, **indices, transpose=transpose, **settings)
        settings = {name: value for name, value in settings.items() if name in ("group_size", "bits", "mode")}
        w = mx.dequantize(w, scales, biases, **settings)
        return gathered(x, w.swapaxes(-1, -2) if transpose else w, lhs_indices, rhs_indices)

    ours = any_type(matmul, MATMUL)
    functions = {"matmul": ours, "gather_mm": any_type(gathered, GATHER_MM), "quantized_matmul": quantised}
    functions |= {
        "gather_qmm": gathered_quantised,
        "addmm": lambda c, a, b, alpha=1, beta=1: beta * c + alpha * ours(a, b),
    }
    return {(mx, name): function for name, function in functions.items()} | {(mx.array, "__matmul__"): ours}


def ten_bits(x: np.ndarray) -> np.ndarray:
    """The nearest numbers with 10 bits of mantissa behind the hidden one, as float64."""
    step = ulp(x, "float32") * 2.0**13
    return np.rint(x / step) * step


class TF32(Exact):
    @staticmethod
    def matmul(a, b):
        return ten_bits(a) @ ten_bits(b)


def tf32() -> Emulated:
    def short(x):
        """`ten_bits` by the bits of float32: half of what is cut off, less one where what stays is even."""
        bits = x.astype(mx.float32).view(mx.uint32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & 0xFFFFE000).view(mx.float32)

    def matmul(a, b, *, stream=None):
        return MATMUL(short(a), short(b))

    def gathered(a, b, *rest, **others):
        return GATHER_MM(short(a), short(b), *rest, **others)

    attend = {(mx.fast, "scaled_dot_product_attention"): attention(matmul, lambda x: mx.softmax(x, axis=-1))}
    return Emulated(products(matmul, gathered) | attend, TF32())


def pieces(length: int) -> list[np.ndarray]:
    """The indices of a sum's terms, in the order in which they are added; of no terms one empty piece."""
    return np.array_split(np.random.default_rng(length).permutation(length), max(1, min(PIECES, length)))


class Reordered(Exact):
    """In float32, where the order counts."""

    @staticmethod
    def matmul(a, b):
        a, b = a.astype(np.float32), b.astype(np.float32)
        return sum(a[..., take] @ b[..., take, :] for take in pieces(a.shape[-1])).astype(np.float64)

    @staticmethod
    def sum(x):
        x = x.astype(np.float32)
        return sum(x[..., take].cumsum(axis=-1)[..., -1:] for take in pieces(x.shape[-1])).astype(np.float64)


def reordered() -> Emulated:
    def contraction(product):
        def compute(a, b, *rest, **others):
            if not a.shape[-1]:  # MLX takes half a minute to take nothing from nothing
                return product(a, b, *rest, **others)
            parts = [mx.array(take.astype(np.uint32)) for take in pieces(a.shape[-1])]
            along = -2 if b.ndim > 1 else -1
            return sum(product(mx.take(a, p, axis=-1), mx.take(b, p, axis=along), *rest, **others) for p in parts)

        return compute

    def summed(x, axis=None, keepdims=False, *, stream=None):
        if x.dtype != mx.float32 or not isinstance(axis, int) or not x.shape[axis]:
            return SUM(x, axis=axis, keepdims=keepdims)
        parts = [mx.array(take.astype(np.uint32)) for take in pieces(x.shape[axis])]
        return sum(SUM(mx.take(x, part, axis=axis), axis=axis, keepdims=keepdims) for part in parts)

    def mean(x, axis=None, keepdims=False, *, stream=None):
        if x.dtype != mx.float32 or not isinstance(axis, int):
            return MEAN(x, axis=axis, keepdims=keepdims)
        return summed(x, axis, keepdims) / x.shape[axis]

    matmul, gathered = contraction(MATMUL), contraction(GATHER_MM)
    attend = {(mx.fast, "scaled_dot_product_attention"): attention(matmul, lambda x: mx.softmax(x, axis=-1))}
    return Emulated(products(matmul, gathered) | as_methods({"sum": summed, "mean": mean}) | attend, Reordered())


# --- subnormal numbers -------------------------------------------------------------------------------------------


def flushed() -> Emulated:
    def flush(original):
        def compute(*arguments, **others):
            y = original(*arguments, **others)
            if not isinstance(y, mx.array) or y.dtype != mx.float32:
                return y
            return mx.where(mx.abs(y) < SMALLEST, mx.array(0, mx.float32), y)

        return compute

    names = "multiply divide add subtract exp sigmoid softmax square sum matmul".split()
    operators = [f"__{name}__" for name in "mul rmul truediv rtruediv add radd sub rsub matmul".split()]
    places = [*as_methods({name: getattr(mx, name) for name in names}), *((mx.array, name) for name in operators)]
    table = {place: flush(getattr(*place)) for place in places}
    return Emulated(table, Exact(), lambda x: np.where(np.abs(x) < SMALLEST, 0, x))


EMULATED = {
    "metal_worst": metal(1.0),
    "metal_tenth": metal(0.1),
    "tf32": tf32(),
    "reordered": reordered(),
    "flushed": flushed(),
}


@functools.cache
def calibrated(name: str) -> Calibration:
    """An emulated device, as a GPU, as `parity device` would find it."""
    with EMULATED[name].on():
        figures, missing = measure(mx.cpu)
    return Calibration(Device("gpu", f"emulated {name}", "a system", "", (), "0"), figures, missing)


@functools.cache
def noise_of(name: str) -> DeviceNoise:
    """What it errs by beyond the null."""
    return DeviceNoise.of(calibrated(name))
