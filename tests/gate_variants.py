"""Five correct ways to write dsv4_mlx, for the gate to find nothing in.

Each is a context in which dsv4_mlx computes the same maths otherwise. `order` and `layout` change every contraction,
`fused` uses MLX's own kernels and joins what reads the same input, `compiled` traces the pure parts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import mlx.core as mx
import numpy as np

from dsv4_mlx import attention, compressor, experts, hyper_connection, norm, rope
from dsv4_mlx.attention import GroupedLinear
from dsv4_mlx.experts import SharedExpert
from dsv4_mlx.hyper_connection import HyperConnection
from dsv4_mlx.quantization import Linear, linear_input

HAS_COMPILER = shutil.which("g++") is not None  # without one MLX cannot compile on the CPU


@contextmanager
def replaced(*places: tuple[object, str, object]) -> Iterator[None]:
    """These attributes replaced for a while."""
    with ExitStack() as stack:
        for owner, name, value in places:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def shuffled(size: int) -> mx.array:
    """An order of 0 ... size - 1 that depends on the size alone."""
    return mx.array(np.random.default_rng(size).permutation(size))


# --- another summation order: the axis of every contraction permuted -------------------------------------------


def _linear_in_another_order(self, x):
    order = shuffled(x.shape[-1])
    return (linear_input(x, self)[..., order] @ self.weight[:, order].T).astype(x.dtype)


def _grouped_in_another_order(self, x):
    order = shuffled(x.shape[-1])
    weight = self.weight.reshape(x.shape[2], -1, x.shape[3])[..., order]
    return mx.einsum("bsgi,goi->bsgo", x[..., order], weight).astype(x.dtype)


def _inverse_rms_in_another_order(x, eps):
    order = shuffled(x.shape[-1])
    return mx.rsqrt(x.square()[..., order].sum(axis=-1, keepdims=True) / x.shape[-1] + eps)


def _sink_attention_in_another_order(q, keys, mask, sink, scale):
    """Keys from the last to the first, the sink inside the maximum and ahead of the sum."""
    wide_keys, mask = norm.wide(keys)[:, ::-1], mask[:, :, None, ::-1]
    scores = mx.einsum("bshd,bkd->bshk", norm.wide(q), wide_keys) * scale
    scores = mx.concatenate([mx.broadcast_to(sink[:, None], (*q.shape[:3], 1)), mx.where(mask, scores, -mx.inf)], -1)
    weights = mx.softmax(scores, axis=-1, precise=True)[..., 1:]
    return mx.einsum("bshk,bkd->bshd", weights, wide_keys).astype(q.dtype)


def _routed_in_another_order(self, x, weights, chosen):
    return norm.wide(self.experts(x, weights[..., ::-1], chosen[..., ::-1])).sum(axis=-2)


def order():
    """Every contraction adds up in another order."""
    return replaced(
        (Linear, "__call__", _linear_in_another_order),
        (GroupedLinear, "__call__", _grouped_in_another_order),
        (norm, "inverse_rms", _inverse_rms_in_another_order),
        (attention, "sink_attention", _sink_attention_in_another_order),
        (experts.MoE, "routed", _routed_in_another_order),
    )


# --- another layout: heads before tokens, weights as [in, out], channels before streams ------------------------


def _linear_transposed(self, x):
    weight = mx.contiguous(self.weight.T)
    flat = linear_input(x, self).reshape(-1, x.shape[-1])
    return (weight.T @ flat.T).T.reshape(*x.shape[:-1], -1).astype(x.dtype)


def _grouped_by_loop(self, x):
    weights = mx.split(self.weight, x.shape[2], axis=0)
    return mx.stack([(x[:, :, g] @ w.T).astype(x.dtype) for g, w in enumerate(weights)], axis=2)


def _sink_attention_heads_first(q, keys, mask, sink, scale):
    wide_q, wide_keys = norm.wide(q).transpose(0, 2, 1, 3), norm.wide(keys)[:, None]
    scores = mx.where(mask[:, None], (wide_q * scale) @ wide_keys.swapaxes(-1, -2), -mx.inf)
    sinks = sink[None, :, None, None]
    top = mx.maximum(scores.max(axis=-1, keepdims=True), sinks)
    weights = mx.exp(scores - top)
    out = (weights @ wide_keys) / (mx.exp(sinks - top) + weights.sum(axis=-1, keepdims=True))
    return out.transpose(0, 2, 1, 3).astype(q.dtype)


def _rotate_halves(x, positions, frequencies, inverse=False):
    """Pairs pulled apart into halves, turned, and put back."""
    half = frequencies.size
    angles = positions[..., None].astype(mx.float32) * frequencies
    angles = angles.reshape(1 if positions.ndim == 1 else x.shape[0], -1, *[1] * (x.ndim - 3), half)
    cos, sin = mx.cos(angles), mx.sin(angles) * (-1 if inverse else 1)
    still, turned = x[..., : -2 * half], norm.wide(x[..., -2 * half :])
    a, b = turned[..., 0::2], turned[..., 1::2]
    halves = mx.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    back = halves.reshape(*x.shape[:-1], 2, half).swapaxes(-1, -2).flatten(-2)
    return mx.concatenate([still, back.astype(x.dtype)], axis=-1)


def _post_streams_last(self, v, streams, post, comb):
    columns = norm.wide(streams).swapaxes(-1, -2)  # [B, S, D, n]
    mixed = norm.wide(v)[..., None] * post[..., None, :] + columns @ comb
    return mixed.swapaxes(-1, -2).astype(streams.dtype)


def layout():
    """The same tensors the other way round."""
    return replaced(
        (Linear, "__call__", _linear_transposed),
        (GroupedLinear, "__call__", _grouped_by_loop),
        (attention, "sink_attention", _sink_attention_heads_first),
        (rope, "rotate", _rotate_halves),
        (HyperConnection, "post", _post_streams_last),
    )


# --- fused: MLX's kernels, projections of one input joined -----------------------------------------------------


def _fast_rms_norm(x, weight, eps):
    return mx.fast.rms_norm(norm.wide(x), None if weight is None else norm.wide(weight), eps).astype(x.dtype)


def _fast_sink_attention(q, keys, mask, sink, scale):
    wide_q = norm.wide(q).transpose(0, 2, 1, 3)
    wide_keys = norm.wide(keys)[:, None]
    bias = mx.where(mask[:, None], 0.0, -mx.inf).astype(wide_q.dtype)
    bias = mx.broadcast_to(bias, (q.shape[0], 1, *bias.shape[2:]))
    out = mx.fast.scaled_dot_product_attention(wide_q, wide_keys, wide_keys, scale=scale, mask=bias, sinks=sink)
    return out.transpose(0, 2, 1, 3).astype(q.dtype)


def _joined_project(self, x):
    joined = norm.wide(x) @ mx.concatenate([self.wkv.weight, self.wgate.weight]).T
    return tuple(mx.split(joined, 2, axis=-1))


def _joined_shared_expert(self, x):
    seen = linear_input(x, self.w1)
    joined = (seen @ mx.concatenate([self.w1.weight, self.w3.weight]).T).astype(x.dtype)
    gate, up = mx.split(norm.wide(joined), 2, axis=-1)
    return self.w2(experts.swiglu(gate, up, self.limit).astype(x.dtype))


def fused():
    """Fast kernels for norms and attention, one product where two read the same input."""
    return replaced(
        (norm, "rms_norm", _fast_rms_norm),
        (attention, "sink_attention", _fast_sink_attention),
        (compressor.Compressor, "project", _joined_project),
        (SharedExpert, "__call__", _joined_shared_expert),
    )


# --- compiled --------------------------------------------------------------------------------------------------


def _compiled_sinkhorn(original):
    compiled = {}

    def sinkhorn(logits, iters, eps):
        key = iters, eps
        if key not in compiled:
            compiled[key] = mx.compile(lambda x: original(x, iters, eps))
        return compiled[key](logits)

    return sinkhorn


def compiled():
    """mx.compile around the pure parts: kernels that are fused from what they read to what they write."""
    attend, limits = mx.compile(attention.sink_attention), {}
    swiglu = experts.swiglu

    def compiled_swiglu(gate, up, limit):
        if limit not in limits:
            limits[limit] = mx.compile(lambda g, u: swiglu(g, u, limit))
        return limits[limit](gate, up)

    return replaced(
        (attention, "sink_attention", attend),
        (experts, "swiglu", compiled_swiglu),
        (hyper_connection, "sinkhorn", _compiled_sinkhorn(hyper_connection.sinkhorn)),
        (hyper_connection, "collapse", mx.compile(hyper_connection.collapse)),
    )


VARIANTS = {"order": order, "layout": layout, "fused": fused, "compiled": compiled}
