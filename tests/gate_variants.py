"""Five correct ways to write or to run dsv4_mlx, in which the gate must find nothing.

`order`, `layout`, `fused` and `compiled` are contexts in which dsv4_mlx computes the same maths otherwise; `bfloat16`
is dsv4_mlx as it is, on probes whose reference is in bfloat16 too.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from unittest import mock

import mlx.core as mx
import numpy as np
import torch

from dsv4_mlx import attention, experts, hyper_connection, norm, respelling, rope
from dsv4_mlx.attention import GroupedLinear
from dsv4_mlx.compressor import Compressor
from dsv4_mlx.experts import ExpertLinear, MoE, SharedExpert
from dsv4_mlx.hyper_connection import HyperConnection
from dsv4_mlx.indexer import Indexer
from dsv4_mlx.model import Model
from dsv4_mlx.quantization import Linear, linear_input
from dsv4_mlx.router import Router
from parity.gate.defects.patching import as_written
from parity.gate.probes import Probe

HAS_COMPILER = mx.default_device() != mx.cpu or shutil.which("g++") is not None  # what MLX compiles with on the CPU


@contextmanager
def replaced(*places: tuple[object, str, object]) -> Iterator[None]:
    """These attributes replaced for a while."""
    with ExitStack() as stack:
        for owner, name, value in places:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


# --- another summation order: the axis of every contraction permuted or turned round ---------------------------


def shuffled(size: int) -> mx.array:
    """An order of 0 ... size - 1 that depends on the size alone."""
    return mx.array(np.random.default_rng(size).permutation(size))


def _linear_in_another_order(self, x):
    order = shuffled(x.shape[-1])
    return (linear_input(x, self)[..., order] @ self.weight[:, order].T).astype(x.dtype)


def _grouped_in_another_order(self, x):
    order = shuffled(x.shape[-1])
    return mx.einsum("bsgi,goi->bsgo", x[..., order], self.weight[..., order]).astype(x.dtype)


def _experts_in_another_order(self, x, indices, sorted_indices=False):
    order = shuffled(x.shape[-1])
    seen, weight = norm.wide(linear_input(x, self))[..., order], norm.wide(self.weight)[..., order]
    return mx.gather_mm(seen, weight.swapaxes(-1, -2), rhs_indices=indices).astype(x.dtype)


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


def _router_in_another_order(original):
    def scores(self, x):
        order = shuffled(x.shape[-1])
        turned = SimpleNamespace(weight=self.weight[:, order], scoring_func=self.scoring_func)
        return original(turned, x[..., order])

    return scores


def _routed_in_another_order(self, x, weights, chosen):
    return norm.wide(self.experts(x, weights[..., ::-1], chosen[..., ::-1])).sum(axis=-2)


def _indexer_in_another_order(original):
    def scores(self, x, q, keys):
        order = shuffled(q.shape[-1])
        return original(self, x, q[..., order], keys[..., order])

    return scores


def _blocks(self, kv, gate, before):
    """What `Compressor.pool` pools over its axis 2."""
    count = kv.shape[1] // self.ratio
    shape = (kv.shape[0], count, self.ratio, kv.shape[2])
    kv, gate = (x[:, : count * self.ratio].reshape(shape) for x in (kv, gate))
    gate = gate + self.ape
    return self._with_block_before(kv, gate, before) if self.overlap else (kv, gate)


def _pool_in_another_order(self, kv, gate, before=None):
    """Tokens of a block from the last to the first."""
    kv, gate = _blocks(self, kv, gate, before)
    return (mx.softmax(gate[:, :, ::-1], axis=2) * kv[:, :, ::-1]).sum(axis=2)


def _project_in_another_order(original):
    def project(streams, fn, eps):
        turned = fn.reshape(fn.shape[0], *streams.shape[-2:])[:, ::-1]
        return original(streams[..., ::-1, :], turned.flatten(1), eps)

    return project


@contextmanager
def rewritten(*places: tuple[object, str, object]) -> Iterator[None]:
    """As `replaced`, in functions that dsv4_mlx has compiled too."""
    # They read weights as numbers, so that packed ones are decoded as they are loaded: no column has a group.
    with replaced((respelling, "MX_GROUP", 10**9), *places), as_written():
        yield


def order():
    """Contractions add up in another order."""
    sinkhorn, collapse, post = hyper_connection.sinkhorn, hyper_connection.collapse, HyperConnection.post
    return rewritten(
        (Linear, "__call__", _linear_in_another_order),
        (GroupedLinear, "__call__", _grouped_in_another_order),
        (ExpertLinear, "__call__", _experts_in_another_order),
        (norm, "inverse_rms", _inverse_rms_in_another_order),
        (attention, "sink_attention", _sink_attention_in_another_order),
        (Router, "scores", _router_in_another_order(Router.scores)),
        (MoE, "routed", _routed_in_another_order),
        (Indexer, "scores", _indexer_in_another_order(Indexer.scores)),
        (Compressor, "pool", _pool_in_another_order),
        (hyper_connection, "project", _project_in_another_order(hyper_connection.project)),
        (hyper_connection, "sinkhorn", lambda m, *args: sinkhorn(m[..., ::-1, ::-1], *args)[..., ::-1, ::-1]),
        (hyper_connection, "collapse", lambda streams, pre: collapse(streams[..., ::-1, :], pre[..., ::-1])),
        (
            HyperConnection,
            "post",
            lambda self, v, streams, p, comb: post(self, v, streams[..., ::-1, :], p, comb[..., ::-1, :]),
        ),
    )


# --- another layout: heads before tokens, weights as [in, out] in two shards, channels before streams ----------


def _linear_in_shards(self, x):
    """Each of two devices has half the inputs, and the weight as [in, out]."""
    seen, weight = norm.wide(linear_input(x, self)), norm.wide(self.weight)
    shards = zip(mx.split(seen, 2, axis=-1), mx.split(weight, 2, axis=-1), strict=True)
    first, second = (part @ mx.contiguous(rows.T) for part, rows in shards)
    return (first + second).astype(x.dtype)


def _grouped_by_loop(self, x):
    return mx.stack([(x[:, :, g] @ w.T).astype(x.dtype) for g, w in enumerate(self.weight)], axis=2)


def _routed_by_loop(self, x, weights, chosen):
    """Expert by expert, all tokens through each; who did not choose it gives it a weight of 0."""

    def output(layer, rows):
        return (norm.wide(linear_input(rows, layer)) @ norm.wide(layer.weight[index]).T).astype(x.dtype)

    total, stacked = 0, self.experts
    for index in range(len(stacked.w1.weight)):
        weight = mx.where(chosen == index, weights, 0).sum(axis=-1, keepdims=True)
        hidden = experts.swiglu(norm.wide(output(stacked.w1, x)), norm.wide(output(stacked.w3, x)), stacked.limit)
        total = total + norm.wide(output(stacked.w2, (weight * hidden).astype(x.dtype)))
    return total


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


def _project_channels_first(streams, fn, eps):
    x = norm.wide(streams).swapaxes(-1, -2).flatten(-2)
    fn = fn.reshape(fn.shape[0], *streams.shape[-2:]).swapaxes(-1, -2).flatten(1)
    return (x @ fn.T) * norm.inverse_rms(x, eps)


def _post_channels_first(self, v, streams, post, comb):
    columns = norm.wide(streams).swapaxes(-1, -2)  # [B, S, D, n]
    mixed = norm.wide(v)[..., None] * post[..., None, :] + columns @ comb
    return mixed.swapaxes(-1, -2).astype(streams.dtype)


def layout():
    """The same tensors the other way round, or in parts."""
    return rewritten(
        (Linear, "__call__", _linear_in_shards),
        (GroupedLinear, "__call__", _grouped_by_loop),
        (MoE, "routed", _routed_by_loop),
        (attention, "sink_attention", _sink_attention_heads_first),
        (rope, "rotate", _rotate_halves),
        (hyper_connection, "project", _project_channels_first),
        (HyperConnection, "post", _post_channels_first),
    )


# --- fused: MLX's kernels, joined projections, the head's norm inside the head ---------------------------------


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


def _post_in_one_product(self, v, streams, post, comb):
    """The product adds to what the sub-layer gives, inside the kernel."""
    entering = post[..., None] * norm.wide(v)[..., None, :]
    return mx.addmm(entering, comb.swapaxes(-1, -2), norm.wide(streams)).astype(streams.dtype)


def _head_with_its_norm(self, streams):
    """The norm's weight is part of the head's."""
    x = norm.wide(norm.rms_norm(self.hc_head(streams), None, self.norm.eps))
    return x @ (norm.wide(self.head.weight) * norm.wide(self.norm.weight)).T


def fused():
    """Fast kernels for norms and attention, one product where there were two steps."""
    return rewritten(
        (norm, "rms_norm", _fast_rms_norm),
        (attention, "sink_attention", _fast_sink_attention),
        (Compressor, "project", _joined_project),
        (SharedExpert, "__call__", _joined_shared_expert),
        (HyperConnection, "post", _post_in_one_product),
        (Model, "logits", _head_with_its_norm),
    )


# --- compiled: mx.compile keeps every rounding on the CPU, so what compilers rewrite is written out ------------

LOG2_E = 1.4426950408889634


def _exp(x):
    """As compilers for GPUs write it."""
    return mx.power(mx.array(2.0, dtype=x.dtype), x * LOG2_E)


@mx.compile
def _compiled_rms_norm(x, eps):
    t = norm.wide(x)
    return t * mx.rsqrt(t.square().sum(axis=-1, keepdims=True) * (1 / x.shape[-1]) + eps)


def _compiled_norm(x, weight, eps):
    """The weight next to the inverse root, ahead of x."""
    t = _compiled_rms_norm(x, eps)
    return (t if weight is None else t * norm.wide(weight)).astype(x.dtype)


@mx.compile
def _compiled_sink_attention(q, keys, mask, sink, scale):
    batch, tokens, heads, dim = q.shape
    wide_keys = norm.wide(keys)
    scores = norm.wide(q).reshape(batch, tokens * heads, dim) @ wide_keys.swapaxes(-1, -2)
    scores = mx.where(mask[:, :, None], scores.reshape(batch, tokens, heads, -1) * (scale * LOG2_E), -mx.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = mx.power(mx.array(2.0), scores - top)
    share = 1 / (weights.sum(axis=-1, keepdims=True) + mx.power(mx.array(2.0), sink[:, None] * LOG2_E - top))
    out = (weights * share).reshape(batch, tokens * heads, -1) @ wide_keys
    return out.reshape(q.shape).astype(q.dtype)


@mx.compile
def _compiled_swiglu(gate, up, limit):
    if limit > 0:
        gate, up = mx.minimum(gate, limit), mx.clip(up, -limit, limit)
    return gate * up * (1 / (1 + _exp(-gate)))


@mx.compile
def _compiled_sinkhorn(logits, iters, eps):
    matrix = _exp(logits - logits.max(axis=-1, keepdims=True))
    matrix = matrix * (1 / matrix.sum(axis=-1, keepdims=True)) + eps
    for step in range(2 * iters - 1):
        matrix = matrix * (1 / (matrix.sum(axis=-1 if step % 2 else -2, keepdims=True) + eps))
    return matrix


@mx.compile
def _compiled_pool(kv, gate):
    weights = _exp(gate - gate.max(axis=2, keepdims=True))
    return (weights * kv).sum(axis=2) * (1 / weights.sum(axis=2))


def _pool_compiled(self, kv, gate, before=None):
    if kv.shape[1] < self.ratio:  # MLX takes no maximum of nothing
        return mx.zeros((kv.shape[0], 0, self.dim))
    return _compiled_pool(*_blocks(self, kv, gate, before))


def compiled():
    """mx.compile around the pure parts: exp as a power of 2, reciprocals instead of quotients, scales joined."""
    return replaced(
        (norm, "rms_norm", _compiled_norm),
        (attention, "sink_attention", _compiled_sink_attention),
        (experts, "swiglu", _compiled_swiglu),
        (Compressor, "pool", _pool_compiled),
        (hyper_connection, "sinkhorn", _compiled_sinkhorn),
        (hyper_connection, "collapse", mx.compile(hyper_connection.collapse)),
        (hyper_connection, "project", mx.compile(hyper_connection.project)),
    )


# --- bfloat16 --------------------------------------------------------------------------------------------------

KEPT_WIDE = re.compile(r"(.*\.)?(hc_(attn|ffn|head)_(fn|base|scale)|attn_sink|ape|gate\.bias|scale)")


def in_bfloat16(probe: Probe) -> Probe:
    """The probe with its weights stored as in published checkpoints, and the reference in bfloat16."""

    def recipe(weights):
        probe.recipe(weights)
        for name, tensor in weights.tensors.items():
            if tensor.dtype == torch.float32 and not KEPT_WIDE.fullmatch(name):
                weights.tensors[name] = tensor.bfloat16()

    config = probe.config | {"torch_dtype": "bfloat16"}
    return dataclasses.replace(probe, dtype="bfloat16", config=config, recipe=recipe)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A context in which dsv4_mlx is written otherwise, and what becomes of a probe."""

    written: Callable[[], AbstractContextManager] = nullcontext
    probe: Callable[[Probe], Probe] = lambda probe: probe


VARIANTS = {
    "order": Variant(order),
    "layout": Variant(layout),
    "fused": Variant(fused),
    "compiled": Variant(compiled),
    "bfloat16": Variant(probe=in_bfloat16),
}
