"""Defects that real ports had (spec/defects.md), as edits of the text of `dsv4_mlx`.

A new one is one entry of the table: an id, a title, the pair that must be blamed, and the edits `(file, old text, new
text)`. The old text must occur exactly once, so that a table that no longer fits the source fails by itself.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

import dsv4_mlx

SOURCE = Path(dsv4_mlx.__file__).parent
OVERLAP, PLAIN = "compressor.overlap", "compressor.plain"


@dataclass(frozen=True)
class Mutation:
    """One defect. `blamed`: the pairs that may be the finding; `only`: the one type in which it shows, if it is so;
    `between_calls`: one call never shows it."""

    id: str
    title: str
    blamed: tuple[str, ...]
    edits: tuple[tuple[str, str, str], ...]
    only: str = ""
    between_calls: bool = False


def mutation(id: str, title: str, blamed: str, *edits: tuple[str, str, str], **where) -> Mutation:
    return Mutation(id, title, tuple(blamed.split()), edits, **where)


MUTATIONS = (
    # RoPE
    mutation(
        "D001",
        "one rope base for every layer",
        "rope",
        ("rope", "config.compress_rope_theta if ratio else config.rope_theta", "config.rope_theta"),
    ),
    mutation(
        "D002",
        "window-only layers take the compressed layers' base",
        "rope",
        ("rope", "config.compress_rope_theta if ratio else config.rope_theta", "config.compress_rope_theta"),
    ),
    mutation(
        "D003", "YaRN on window-only layers", "rope", ("rope", "if ratio and yarn is not None", "if yarn is not None")
    ),
    mutation(
        "D007",
        "positions divided by the frequencies",
        "rope",
        ("rope", "astype(mx.float32) * freq", "astype(mx.float32) / freq"),
    ),
    mutation(
        "D008",
        "half-split pairs",
        "rope",
        ("rope", "frequencies.size, 2)", "2, frequencies.size).swapaxes(-1, -2)"),
        ("rope", "a * sin + b * cos], axis=-1)", "a * sin + b * cos], axis=-2)"),
    ),
    mutation(
        "D009",
        "YaRN's amplitude on cos and sin",
        "rope",
        ("rope", "= mx.cos(angles), mx.sin(angles)", "= 1.277 * mx.cos(angles), 1.277 * mx.sin(angles)"),
    ),
    mutation(
        "D010",
        "output not turned back",
        "attention.output",
        ("attention", "o = rope.rotate(o, positions, self._frequencies, inverse=True)", "pass"),
    ),
    mutation("D010-sign", "output turned on, not back", "attention.output", ("attention", ", inverse=True", "")),
    # Hyper-connections
    mutation(
        "D016",
        "comb not transposed",
        "hyper_connection.post",
        ("hyper_connection", "comb.swapaxes(-1, -2) @", "comb @"),
    ),
    mutation(
        "D017",
        "post is sigmoid + eps",
        "hyper_connection.pre",
        (
            "hyper_connection",
            "2 * mx.sigmoid(c * self.scale[1] + base_c)",
            "mx.sigmoid(c * self.scale[1] + base_c) + self.hc_eps",
        ),
    ),
    mutation(
        "D018",
        "comb starts from sigmoids",
        "hyper_connection.pre",
        ("hyper_connection", "mx.softmax(logits, axis=-1)", "mx.sigmoid(logits)"),
    ),
    mutation(
        "D019-rows-first",
        "Sinkhorn starts with rows: iters pairs of a row and a column step",
        "hyper_connection.pre",
        (
            "hyper_connection",
            "    for _ in range(iters - 1):",
            "    matrix = mx.softmax(logits, axis=-1) + eps\n    for _ in range(iters):",
        ),
    ),
    mutation(
        "D019-rows-last",
        "Sinkhorn ends with rows: iters pairs of a column and a row step",
        "hyper_connection.pre",
        ("hyper_connection", "    return matrix\n", "    return matrix / (matrix.sum(axis=-1, keepdims=True) + eps)\n"),
    ),
    mutation(
        "D019-one-more",
        "one pair of steps more",
        "hyper_connection.pre",
        ("hyper_connection", "range(iters - 1)", "range(iters)"),
    ),
    mutation(
        "D021",
        "eps inside the softmax's denominator",
        "hyper_connection.pre",
        (
            "hyper_connection",
            "mx.softmax(logits, axis=-1) + eps",
            "mx.exp(logits) / (mx.exp(logits).sum(axis=-1, keepdims=True) + eps)",
        ),
    ),
    mutation(
        "hc_eps in pre",
        "the projection's rms with hc_eps",
        "hyper_connection.pre",
        (
            "hyper_connection",
            "mx.split(project(streams, self.fn, self.norm_eps)",
            "mx.split(project(streams, self.fn, self.hc_eps)",
        ),
    ),
    mutation(
        "hc_eps in head",
        "the head's rms with hc_eps",
        "hyper_connection.head",
        (
            "hyper_connection",
            "a = project(streams, self.fn, self.norm_eps)",
            "a = project(streams, self.fn, self.hc_eps)",
        ),
    ),
    # Attention
    mutation(
        "D026",
        "queries without their norm",
        "attention.queries",
        ("attention", "q = norm.rms_norm(q, None, self.eps)", "pass"),
    ),
    mutation(
        "D028-dropped",
        "no sink",
        "attention.softmax",
        ("attention", " + mx.exp(sink[:, None] - top)", ""),
    ),
    mutation(
        "D028-value",
        "the sink carries the first key's value",
        "attention.softmax",
        (
            "attention",
            "(out.reshape(q.shape) / total)",
            "((out.reshape(q.shape) + mx.exp(sink[:, None] - top) * wide_keys[:, None, :1]) / total)",
        ),
    ),
    mutation(
        "D028-scaled",
        "the sink scaled like a score",
        "attention.softmax",
        ("attention", "mx.exp(sink[:, None] -", "mx.exp(sink[:, None] * scale -"),
    ),
    mutation(
        "D030",
        "heads dealt out to the groups",
        "attention.output",
        (
            "attention",
            "o = o.reshape(*o.shape[:2], self.groups, -1)",
            "o = o.reshape(*o.shape[:2], -1, self.groups, self.dim).swapaxes(2, 3).flatten(-2)",
        ),
    ),
    mutation(
        "window+1",
        "a window one key too wide",
        "attention.window",
        ("attention", "(key_at > query_at", "(key_at >= query_at"),
    ),
    mutation(
        "ring-1",
        "a chunk sees one key less of the past",
        "attention.window",
        ("cache", "min(start, self.size - 1)", "min(start, self.size - 2)"),
        between_calls=True,
    ),
    mutation(
        "ring slot",
        "decode writes the ring one slot ahead",
        "attention.window",
        ("cache", "slot = (end - 1) % self.size", "slot = end % self.size"),
        between_calls=True,
    ),
    mutation(
        "D052",
        "no window without a cache",
        "attention.window",
        ("attention", "self.window))[None]", "(self.window if state is not None else 1 << 30)))[None]"),
    ),
    # Compressor
    mutation(
        "D005",
        "rows not rotated",
        f"{OVERLAP} {PLAIN}",
        (
            "compressor",
            "rope.rotate(self.norm(rows.astype(dtype)), positions, frequencies)",
            "self.norm(rows.astype(dtype))",
        ),
    ),
    mutation(
        "D005-last",
        "rows rotated by their last token's position",
        f"{OVERLAP} {PLAIN}",
        (
            "compressor",
            "positions = self.ratio * mx.arange(first, first + rows.shape[1])",
            "positions = self.ratio * mx.arange(first + 1, first + rows.shape[1] + 1) - 1",
        ),
    ),
    mutation(
        "D033",
        "the block before is lost between calls",
        OVERLAP,
        ("compressor", "before = state.before", "before = None"),
        between_calls=True,
    ),
    mutation(
        "D034",
        "ape by the token's place in its call",
        f"{OVERLAP} {PLAIN}",
        (
            "compressor",
            "kv, gate = self.project(x)",
            "kv, gate = self.project(x)\n        gate = gate + self.ape[mx.arange(x.shape[1]) % self.ratio]",
        ),
        ("compressor", ".reshape(shape) + self.ape", ".reshape(shape)"),
        ("compressor", "before[1][:, None] + self.ape", "before[1][:, None]"),
        between_calls=True,
    ),
    mutation(
        "D035",
        "later calls pool the first half of the block itself",
        OVERLAP,
        (
            "compressor",
            "        if self.overlap:\n            kv, gate = self._with",
            "        if before is not None:\n"
            "            kv, gate = kv[..., : self.dim], gate[..., : self.dim]\n"
            "        elif self.overlap:\n"
            "            kv, gate = self._with",
        ),
        between_calls=True,
    ),
    mutation(
        "D036",
        "the remainder of a call is dropped",
        f"{OVERLAP} {PLAIN}",
        ("cache", "[x[:, whole:] for x in joined], 0", "[x[:, :0] for x in joined], 0"),
        between_calls=True,
    ),
    mutation(
        "D036-overwritten",
        "the remainder is overwritten by the next call's",
        f"{OVERLAP} {PLAIN}",
        ("cache", "slots[:, filled : filled + x.shape[1]] = x", "slots[:, : x.shape[1]] = x"),
        between_calls=True,
    ),
    mutation(
        "D037",
        "no row from calls shorter than the ratio",
        f"{OVERLAP} {PLAIN}",
        (
            "compressor",
            "        before = state.before\n",
            "        before = state.before\n"
            "        if x.shape[1] < self.ratio:\n"
            "            return state.rows(x, self.dim)\n",
        ),
        between_calls=True,
    ),
    mutation(
        "D040",
        "projections, ape and softmax in the model's type",
        f"{OVERLAP} {PLAIN}",
        ("compressor", "self.wkv(norm.wide(x)), self.wgate(norm.wide(x))", "self.wkv(x), self.wgate(x)"),
        ("compressor", ".reshape(shape) + self.ape", ".reshape(shape) + self.ape.astype(gate.dtype)"),
        only="bfloat16",
    ),
    mutation(
        "rows in bfloat16",
        "rows rounded to bfloat16 whatever the model's type",
        f"{OVERLAP} {PLAIN}",
        ("compressor", "rows.astype(dtype)", "rows.astype(mx.bfloat16).astype(dtype)"),
        only="float32",
    ),
    mutation(
        "D042",
        "the compressor reads the stream before attn_norm",
        "block",
        ("block", "self.attn_norm(x), start, state)", "self.attn_norm(x), start, state, x)"),
        (
            "attention",
            'state: LayerCache | None = None) -> mx.array:\n        """Normed',
            'state: LayerCache | None = None, raw=None) -> mx.array:\n        """Normed',
        ),
        ("attention", "self._compressed_part(x, qr", "self._compressed_part(x if raw is None else raw, qr"),
    ),
    # Masks
    mutation(
        "D050-plain",
        "all rows visible to all queries, ratio 128",
        "attention.plain",
        (
            "attention",
            "(mx.arange(total) < visible[:, None])[None]",
            "(mx.arange(total) < visible[:, None] + total)[None]",
        ),
    ),
    mutation(
        "D050-overlap",
        "all rows visible to all queries, ratio 4",
        "attention.overlap",
        ("attention", "return pool, mask[..., :total]", "return pool, mx.ones_like(mask[..., :total])"),
    ),
    mutation(
        "D050-indexer",
        "the indexer chooses from all rows",
        "indexer",
        ("indexer", "(positions + 1) // OVERLAP_RATIO", "positions * 0 + keys.shape[1]"),
    ),
    mutation(
        "D051-plain-early",
        "the block in progress is visible, ratio 128",
        "attention.plain",
        (
            "attention",
            "visible = mx.arange(start + 1, start + tokens + 1) // self.ratio",
            "visible = mx.arange(start, start + tokens) // self.ratio + 1",
        ),
    ),
    mutation(
        "D051-plain-late",
        "a row is hidden from the token that completes it, ratio 128",
        "attention.plain",
        ("attention", "mx.arange(start + 1, start + tokens + 1)", "mx.arange(start, start + tokens)"),
    ),
    mutation(
        "D051-overlap-early",
        "the block in progress is visible, ratio 4",
        "indexer",
        ("indexer", "(positions + 1) // OVERLAP_RATIO", "positions // OVERLAP_RATIO + 1"),
    ),
    mutation(
        "D051-overlap-late",
        "a row is hidden from the token that completes it, ratio 4",
        "indexer",
        ("indexer", "(positions + 1) // OVERLAP_RATIO", "positions // OVERLAP_RATIO"),
    ),
    mutation(
        "D038",
        "in a batch, decode sees a row one step late, ratio 128",
        "attention.plain",
        (
            "attention",
            "mx.arange(start + 1, start + tokens + 1) // self.ratio",
            "(mx.arange(start + 1, start + tokens + 1) - (tokens == 1 < len(x))) // self.ratio",
        ),
    ),
    mutation(
        "D056",
        "every query attends to the union of all selections",
        "attention.overlap",
        (
            "attention",
            "return pool, mask[..., :total]",
            "return pool, mx.broadcast_to(mask.any(1, keepdims=True), mask.shape)[..., :total]",
        ),
    ),
    mutation(
        "D056-causal",
        "every query attends to the union of all selections that it may see",
        "attention.overlap",
        (
            "attention",
            "return pool, mask[..., :total]",
            "seen = mx.arange(total) < (mx.arange(start + 1, start + tokens + 1) // 4)[:, None]\n"
            "        return pool, mask.any(1, keepdims=True)[..., :total] & seen",
        ),
    ),
    # Indexer
    mutation(
        "D058",
        "one choice of rows for all queries",
        "indexer",
        (
            "indexer",
            "self.select(self.scores(x, q, keys), (",
            "self.select(self.scores(x, q, keys).sum(1, keepdims=True) + mx.zeros((1, x.shape[1], 1)), (",
        ),
    ),
    mutation(
        "D060",
        "indexer queries not rotated",
        "indexer",
        ("indexer", "self.quant(rope.rotate(q, positions, frequencies))", "self.quant(q)"),
    ),
    mutation(
        "D060-relative",
        "indexer queries rotated by their place in the call",
        "indexer",
        ("indexer", "mx.arange(start, start + x.shape[1])", "mx.arange(x.shape[1])"),
        between_calls=True,
    ),
    # Router and experts
    mutation(
        "D069",
        "weights from biased scores",
        "router",
        (
            "router",
            "take_along_axis(scores, experts",
            "take_along_axis(scores + (0 if self.hashed else self.bias), experts",
        ),
    ),
    mutation(
        "D070",
        "experts by token id have equal weights",
        "router",
        (
            "router",
            "weights = mx.take_along_axis(scores, experts, axis=-1)",
            "weights = mx.take_along_axis(scores * (not self.hashed) + self.hashed, experts, axis=-1)",
        ),
    ),
    mutation(
        "D072",
        "router logits in the model's type",
        "router",
        ("router", "norm.wide(x) @ norm.wide(self.weight).T", "norm.wide(x @ self.weight.T)"),
        only="bfloat16",
    ),
    mutation("D074", "softplus overflows", "router", ("router", "nn.softplus(logits)", "mx.log(1 + mx.exp(logits))")),
    mutation("D075-sum", "weights not normalised", "router", ("router", 'self.scoring_func != "softmax"', "False")),
    mutation(
        "D075-softmax", "softmax weights normalised too", "router", ("router", 'self.scoring_func != "softmax"', "True")
    ),
    mutation("D075-scale", "route_scale forgotten", "router", ("router", "weights * self.route_scale", "weights")),
    mutation(
        "D076-missing",
        "the shared expert is not clamped",
        "experts.shared",
        ("experts", "config.swiglu_limit if config.shared_expert_clamp else 0.0", "0.0"),
    ),
    mutation(
        "D076-always",
        "the shared expert is clamped where the first release is asked for",
        "experts.shared",
        ("experts", "config.swiglu_limit if config.shared_expert_clamp else 0.0", "config.swiglu_limit"),
    ),
    mutation(
        "D076-both-sides",
        "gates clamped on both sides",
        "experts.routed",
        ("experts", "gate = mx.minimum(gate, limit)", "gate = mx.clip(gate, -limit, limit)"),
    ),
    mutation(
        "D076-shared-both-sides",
        "the shared expert's gate clamped on both sides",
        "experts.shared",
        (
            "experts",
            "hidden = swiglu(norm.wide(self.w1(x)),",
            "gate = norm.wide(self.w1(x))\n"
            "        hidden = swiglu(mx.maximum(gate, -self.limit) if self.limit else gate,",
        ),
    ),
    mutation(
        "D076-up",
        "ups clamped only from above",
        "experts.routed",
        ("experts", "up = mx.clip(up, -limit, limit)", "up = mx.minimum(up, limit)"),
    ),
    mutation(
        "late clamp",
        "the clamp after silu",
        "experts.routed",
        (
            "experts",
            "gate = mx.minimum(gate, limit)\n    return gate * mx.sigmoid(gate) * up",
            "return mx.minimum(gate * mx.sigmoid(gate), limit) * up\n    return gate * mx.sigmoid(gate) * up",
        ),
    ),
    mutation(
        "early weight",
        "the router's weight enters before silu",
        "experts.routed",
        (
            "experts",
            "swiglu(norm.wide(self.w1(rows, experts)), norm",
            "swiglu(weights[..., None, None] * norm.wide(self.w1(rows, experts)), norm",
        ),
        ("experts", "(weights[..., None, None] * hidden).astype(x.dtype)", "hidden.astype(x.dtype)"),
    ),
    # Weights, block, MTP
    mutation(
        "D085",
        "high nibble first",
        "fp4_weight",
        ("quantization", "mx.stack([bytes_ & 15, bytes_ >> 4]", "mx.stack([bytes_ >> 4, bytes_ & 15]"),
    ),
    mutation(
        "wrong site",
        "the feed-forward half reads the attention's hyper-connection",
        "block",
        ("block", "x, post, comb = self.hc_ffn.pre(streams)", "x, post, comb = self.hc_attn.pre(streams)"),
    ),
    mutation(
        "D095",
        "the MTP block borrows the backbone's head norm",
        "mtp",
        ("model", "self.head(norm.wide(block.hidden(streams)))", "self.logits(streams)"),
    ),
)
BY_ID = {mutation.id: mutation for mutation in MUTATIONS}


def edited(mutation: Mutation, folder: Path = SOURCE) -> dict[Path, str]:
    """The files of a mutated `dsv4_mlx` that differ, with their new text."""
    texts: dict[Path, str] = {}
    for name, old, new in mutation.edits:
        path = folder / f"{name}.py"
        text = texts.get(path) or path.read_text()
        assert text.count(old) == 1, f"{mutation.id}: {name}.py has {text.count(old)} times {old!r}"
        texts[path] = text.replace(old, new)
    return texts


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """Edit the loaded package for a while: its functions keep their identity and take over the edited code."""
    kept = []
    try:
        for path, text in edited(mutation).items():
            module = importlib.import_module(f"dsv4_mlx.{path.stem}")
            namespace = dict(vars(module))
            exec(compile(text, path, "exec"), namespace)
            new = functions(namespace, module.__name__)
            for name, function in functions(vars(module), module.__name__).items():
                kept.append((function, function.__code__, function.__defaults__))
                function.__code__, function.__defaults__ = new[name].__code__, new[name].__defaults__
        yield
    finally:
        for function, code, defaults in kept:
            function.__code__, function.__defaults__ = code, defaults


def functions(namespace: dict, module: str) -> dict[str, FunctionType]:
    """The functions and methods that a module defines, by their qualified names."""
    own = [value for value in namespace.values() if getattr(value, "__module__", "") == module]
    classes = [value for value in own if isinstance(value, type)]
    found = [value for scope in (own, *(vars(kind).values() for kind in classes)) for value in scope]
    return {value.__qualname__: value for value in found if isinstance(value, FunctionType)}
