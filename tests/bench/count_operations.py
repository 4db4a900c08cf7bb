"""The operations of one decode step of dsv4_mlx, by part: python tests/bench/count_operations.py

An operation costs microseconds here whatever its size; what is compiled counts as one.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path

import mlx.core as mx
from speed_model import CONFIG, write_checkpoint

import dsv4_mlx

CONTEXT = 300


def operations(*outputs: mx.array) -> Counter:
    """Primitives of the graph that is still to be computed, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.dot")
        mx.export_to_dot(str(path), *outputs)
        return Counter(re.findall(r'label ="([^"]+)", shape=rectangle', path.read_text()))


def parts(model, cache) -> dict[str, Counter]:
    """One layer of each kind, its parts on evaluated inputs, and the whole step."""
    dim, n = CONFIG["hidden_size"], CONFIG["hc_mult"]
    x, streams = mx.random.normal((1, 1, dim)), mx.random.normal((1, 1, n, dim))
    ids = mx.array([[5]])
    mx.eval(x, streams, ids)
    layer = model.layers[0]
    mixed = layer.hc_attn.pre(streams)
    mx.eval(mixed)
    found = {
        "hc.pre": operations(*layer.hc_attn.pre(streams)),
        "hc.post": operations(layer.hc_attn.post(x, streams, *mixed[1:])),
        "norm": operations(layer.attn_norm(x)),
        "experts, router included": operations(model.layers[-1].ffn(x, ids)),
    }
    seen = set()
    for block, state in zip(model.layers, cache, strict=True):
        if (ratio := block.attn.ratio) not in seen:
            seen.add(ratio)
            found[f"attention, ratio {ratio}"] = operations(block.attn(x, state.offset, state))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = dsv4_mlx.load(write_checkpoint(Path(folder, "model"), CONFIG, "float32"), mx.float32)

    def primed():
        cache = model.make_cache()
        mx.eval(model(mx.random.randint(0, CONFIG["vocab_size"], (1, CONTEXT)), cache))
        mx.eval(model(mx.array([[5]]), cache))
        return cache

    counts = parts(model, primed()) | {"whole step": operations(model(mx.array([[5]]), primed()))}
    for name, found in counts.items():
        most = ", ".join(f"{kind[:40]} {count}" for kind, count in found.most_common(4))
        print(f"{name:26} {found.total():5}  {most}")


if __name__ == "__main__":
    main()
