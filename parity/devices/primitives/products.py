"""Products with a matrix: many rows, one row, batched, gathered, quantised. Each output is a sum of TERMS products."""

from __future__ import annotations

import numpy as np

from . import Exact, Primitive, of_terms

TERMS, COLUMNS, ROWS = 512, 256, 64
EXPERTS = 4
GROUP, BITS_A_WEIGHT = 64, 4


def _pair(*left: int):
    """Inputs x [*left, TERMS] and w [..., TERMS, COLUMNS], batched as x is."""

    def draw(random, to):
        w = random.standard_normal((*left[:-1], TERMS, COLUMNS)) / np.sqrt(TERMS)
        return {"x": to(random.standard_normal((*left, TERMS))), "w": to(w)}

    return draw


def _product(maths: Exact, x, w):
    return of_terms(maths.matmul(x, w), x**2 @ w**2)


def _gathered(random, to):
    drawn = _pair(EXPERTS, ROWS)(random, to)
    x = to(random.standard_normal((ROWS, 1, TERMS)))
    return {"x": x, "w": drawn["w"], "experts": random.integers(EXPERTS, size=ROWS).astype(np.uint32)}


def _quantised(rows: int):
    """x [rows, TERMS] and COLUMNS rows of 4-bit numbers, eight a word and the lowest bits first, with a scale and a
    bias a group."""

    def draw(random, to):
        numbers = random.integers(1 << BITS_A_WEIGHT, size=(COLUMNS, TERMS)).astype(np.uint32)
        per_word = 32 // BITS_A_WEIGHT
        shifts = BITS_A_WEIGHT * np.arange(per_word, dtype=np.uint32)
        words = (numbers.reshape(COLUMNS, -1, per_word) << shifts).sum(axis=-1).astype(np.uint32)
        scales = to(random.uniform(0.5, 1, (COLUMNS, TERMS // GROUP)) / np.sqrt(TERMS))
        x = to(random.standard_normal((rows, TERMS)))
        return {"x": x, "words": words, "scales": scales, "biases": to(-7.5 * scales)}

    return draw


def weights_of(words, scales, biases) -> np.ndarray:
    """[COLUMNS, TERMS] in float64."""
    numbers = words[..., None] >> (BITS_A_WEIGHT * np.arange(32 // BITS_A_WEIGHT, dtype=np.uint32))
    numbers = (numbers & ((1 << BITS_A_WEIGHT) - 1)).reshape(len(words), -1)
    return np.repeat(scales, GROUP, axis=1) * numbers + np.repeat(biases, GROUP, axis=1)


def _quantised_truth(maths: Exact, x, words, scales, biases):
    return _product(maths, x, weights_of(words, scales, biases).T)


def _quantised_product(mx, x, words, scales, biases):
    return mx.quantized_matmul(x, words, scales, biases, transpose=True, group_size=GROUP, bits=BITS_A_WEIGHT)


def _entry(name: str, draw, compute=lambda mx, x, w: mx.matmul(x, w), truth=_product) -> Primitive:
    return Primitive(name, draw, compute, truth, unit="terms", terms=TERMS)


PRIMITIVES = [
    _entry("matmul", _pair(ROWS)),
    _entry("matmul.row", _pair(1)),
    _entry("matmul.batched", _pair(3, 17)),
    _entry(
        "matmul.gathered",
        _gathered,
        lambda mx, x, w, experts: mx.gather_mm(x, w, rhs_indices=experts),
        lambda maths, x, w, experts: _product(maths, x, w[experts]),
    ),
    _entry("matmul.quantised", _quantised(ROWS), _quantised_product, _quantised_truth),
    _entry("matmul.quantised.row", _quantised(1), _quantised_product, _quantised_truth),
]
