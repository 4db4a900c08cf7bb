"""Sequences in one cache, fed by any schedule and held against one call without a cache."""

import copy

import mlx.core as mx
from helpers import tiny, token_ids
from mlx_lm.models import cache as mlx_lm_cache

from dsv4_mlx import LayerCache
from parity.cases.strategies import checkpoint_tensors
from parity.judging.sides import MLXSide

# A layer of each kind, the last block at a published ratio; window and index_topk are much smaller than a sequence.
CONFIG = tiny((0, 4, 8, 128, 4), sliding_window=6)
IDS = mx.array(token_ids(CONFIG, 300, batch=8).numpy())
NEAR = 1e-4  # of logits between -3 and 3; other shapes of the same products round otherwise, by 5e-6 here


def built(**changed):
    return MLXSide(CONFIG | changed, {}, checkpoint_tensors(CONFIG | changed, 0, "float32"), "float32").model


class Session:
    """Sequences of IDS in one cache: whatever is fed must give what was expected of it."""

    def __init__(self, model, expected, sequences=(0,), cache=None, seen=None):
        self.model, self.expected = model, expected
        self.sequences, self.seen = list(sequences), list(seen or [0] * len(sequences))
        self.cache = cache or model.make_cache()

    def feed(self, *counts, left=False, padded=0):
        """The next counts[i] tokens of sequence i; one number holds for all. Shorter ones are padded."""
        counts = list(counts) * (len(self.sequences) if len(counts) == 1 else 1)
        longest = max(counts) + padded
        spans = [(i, at, at + n) for i, at, n in zip(self.sequences, self.seen, counts, strict=True)]
        rows = []
        for i, start, stop in spans:
            pad = [7] * (longest - (stop - start))
            rows.append(pad + IDS[i, start:stop].tolist() if left else IDS[i, start:stop].tolist() + pad)
        padding = [longest - n for n in counts]
        if any(padding):
            for layer in self.cache:
                layer.prepare(left_padding=padding) if left else layer.prepare(lengths=counts, right_padding=padding)
        logits = self.model(mx.array(rows), cache=self.cache)
        if any(padding):
            for layer in self.cache:
                layer.finalize()
        for row, (i, start, stop) in enumerate(spans):
            got = logits[row, longest - (stop - start) :] if left else logits[row, : stop - start]
            self.check(got, self.expected[i, start:stop])
        self.seen = [stop for _, _, stop in spans]
        return self

    def check(self, got, expected):
        if got.size:
            assert mx.abs(got - expected).max().item() < NEAR

    def stray(self, n):
        """n tokens of other sequences, to be taken back."""
        self.model(IDS[[(i + 4) % 8 for i in self.sequences], 100 : 100 + n], cache=self.cache)
        self.seen = [seen + n for seen in self.seen]
        return self

    def trim(self, n):
        """As mlx-lm does it; shorter sequences go back to nothing."""
        assert mlx_lm_cache.trim_prompt_cache(self.cache, n) == n
        self.seen = [max(seen - n, 0) for seen in self.seen]
        return self


def merged(*runs):
    """The cache of a batch of all their sequences."""
    return [layers[0].merge(layers) for layers in zip(*(run.cache for run in runs), strict=True)]


# --- copies ------------------------------------------------------------------------------------------------


def through_memory(caches, tmp_path):
    return [LayerCache.from_state(cache.state) for cache in caches]


def through_a_file(caches, tmp_path):
    mlx_lm_cache.save_prompt_cache(str(tmp_path / "cache.safetensors"), caches)
    return mlx_lm_cache.load_prompt_cache(str(tmp_path / "cache.safetensors"))


def copied(caches, tmp_path):
    return [copy.copy(cache) for cache in caches]


def deep_copied(caches, tmp_path):
    return copy.deepcopy(caches)
