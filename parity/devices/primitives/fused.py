"""What MLX computes in one kernel of its own: sums, softmax, `mx.fast`."""

from __future__ import annotations

import numpy as np

from . import Exact, Primitive, of_terms

ROWS, SUMS, TERMS = 64, 512, 1024
EPS = 1e-6
CHANNELS, BASE, TOGETHER = 64, 10000.0, 32  # of rope; so many positions a call
FAR = 131072
HEADS, QUERIES, KEYS, SIZE = 4, 33, 256, 64


def _rows(rows: int, scale: float):
    return lambda random, to: {"x": to(scale * random.standard_normal((rows, TERMS)))}


def softmax(maths: Exact, x):
    """Over the last axis."""
    weights = maths.exp(x - x.max(axis=-1, keepdims=True))
    return weights / maths.sum(weights)


def _normed(random, to):
    return {"x": to(random.standard_normal((ROWS, TERMS))), "weight": to(random.uniform(0.5, 2, TERMS))}


def _norm(maths: Exact, x, weight):
    return x / np.sqrt(maths.sum(x**2) / TERMS + EPS) * weight, None


def _turned(*first: int):
    """x [calls, 1, HEADS, TOGETHER, CHANNELS] whose calls begin at these positions; MLX divides a position by its
    `frequencies`."""

    def draw(random, to):
        x = to(random.standard_normal((len(first), 1, HEADS, TOGETHER, CHANNELS)))
        frequencies = (BASE ** (2 * np.arange(CHANNELS // 2) / CHANNELS)).astype(np.float32)
        return {"x": x, "first": np.array(first), "frequencies": frequencies}

    return draw


def _turn(mx, x, first, frequencies):
    settings = {"traditional": True, "base": None, "scale": 1.0, "freqs": frequencies}
    return mx.stack([mx.fast.rope(x[i], CHANNELS, offset=start, **settings) for i, start in enumerate(first.tolist())])


def _turn_truth(maths: Exact, x, first, frequencies):
    positions = first[:, None] + np.arange(TOGETHER)
    angles = (positions[..., None] / frequencies)[:, None, None]
    cos, sin = maths.cos(angles), maths.sin(angles)
    even, odd = x[..., ::2], x[..., 1::2]
    turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)
    return turned, np.repeat(np.hypot(even, odd) * np.maximum(1, angles), 2, axis=-1)


def _attending(queries: int):
    def draw(random, to):
        shapes = {"q": queries, "k": KEYS, "v": KEYS}
        drawn = {name: to(random.standard_normal((1, HEADS, n, SIZE))) for name, n in shapes.items()}
        return drawn | {"q": to(2 * drawn["q"])}  # some keys weigh much more than others

    return draw


def _attend(mx, q, k, v):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=SIZE**-0.5)


def _attend_truth(maths: Exact, q, k, v):
    weights = softmax(maths, maths.matmul(q, k.swapaxes(-1, -2)) * SIZE**-0.5)
    return of_terms(maths.matmul(weights, v), weights**2 @ v**2)


def _sum_truth(maths: Exact, x):
    return of_terms(maths.sum(x)[..., 0], (x**2).sum(axis=-1))


def _attention(name: str, queries: int) -> Primitive:
    return Primitive(name, _attending(queries), _attend, _attend_truth, "terms", KEYS)


def _rope(name: str, *first: int) -> Primitive:
    return Primitive(name, _turned(*first), _turn, _turn_truth, "angle")


PRIMITIVES = [
    Primitive("sum", _rows(SUMS, 1), lambda mx, x: mx.sum(x, axis=-1), _sum_truth, "terms", TERMS),
    Primitive(
        "softmax",
        _rows(ROWS, 3),
        lambda mx, x: mx.softmax(x, axis=-1, precise=True),
        lambda maths, x: (softmax(maths, x), None),
        terms=TERMS,
    ),
    Primitive("rms_norm", _normed, lambda mx, x, weight: mx.fast.rms_norm(x, weight, EPS), _norm, terms=TERMS),
    _rope("rope", 0, 100, 1000, 4000),
    _rope("rope.positions", 8000, 32768 - TOGETHER, 65536 - TOGETHER, FAR + 1 - TOGETHER),
    _attention("attention", QUERIES),
    _attention("attention.row", 1),
]
