"""In whatever calls the tokens come, the reference in float64 gives what it gives in one, to float64's own rounding.

Run: pytest tests/test_reference_incremental.py
"""

import pytest
import torch
from helpers import in_calls, tiny, token_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.cases.strategies import checkpoint_tensors
from parity.cases.strategies.lengths import chunkings
from parity.judging.oracle import NULLS
from parity.judging.rounding import OtherRounding
from parity.judging.tolerance import measure
from reference_torch import Config, MTPState, build
from reference_torch.compressor import CompressorState

AROUND_4 = (1, 3, 4, 5, 7, 8, 9, 13)
AROUND_128 = (127, 128, 129, 131, 256, 257)


class Subject:
    """Something that reads tokens; its one-shot output, and how far rounding alone moves that."""

    def __init__(self, tokens):
        self.tokens = tokens
        with torch.no_grad():
            self.whole = self.run((tokens,), stateless=True)
            self.nulls = []
            for seed, sequential in enumerate(NULLS["float64"]):
                with OtherRounding(seed, sequential):
                    self.nulls.append(self.run((tokens,), stateless=True))

    def ratio(self, chunks) -> float:
        with torch.no_grad():
            got = self.run(chunks)
        assert got.shape == self.whole.shape
        if not got.numel():  # fewer tokens than make a row
            return 0.0
        return measure(self.whole, self.whole, self.nulls, got, "float64").ratio

    def every_split(self) -> dict[int, float]:
        """The first chunk's tokens -> the ratio, where it is beyond the limit."""
        ratios = {first: self.ratio((first, self.tokens - first)) for first in range(1, self.tokens)}
        return {first: ratio for first, ratio in ratios.items() if not ratio <= 1}


class Compressor(Subject):
    """The rows of a compressor; those of the last call are all of them."""

    def __init__(self, ratio, tokens):
        config = tiny((ratio,))
        model = build(Config.from_dict(config), checkpoint_tensors(config, ratio, "float32"), torch.float64)
        attention = model.layers[0].attn
        random = torch.Generator().manual_seed(tokens)
        self.x = torch.randn(2, tokens, config["hidden_size"], generator=random, dtype=torch.float64)
        self.compressor, self.frequencies = attention.compressor, attention.frequencies(self.x)
        super().__init__(tokens)

    def run(self, chunks, stateless=False):
        state, start = None if stateless else CompressorState(), 0
        for tokens in chunks:
            rows = self.compressor(self.x[:, start : start + tokens], start, self.frequencies, state)
            start += tokens
        return rows


class Model(Subject):
    """The logits of a whole model."""

    def __init__(self, ratios, tokens):
        config = tiny(ratios)
        self.model = build(Config.from_dict(config), checkpoint_tensors(config, 0, "float32"), torch.float64)
        self.ids = token_ids(config, tokens, batch=2)
        super().__init__(tokens)

    def run(self, chunks, stateless=False):
        state = None if stateless else self.model.new_state()
        return in_calls(lambda start, stop: self.model(self.ids[:, start:stop], state), chunks)


class MTP(Subject):
    """The logits of an MTP block behind a model, fed with the streams of the one-shot run."""

    def __init__(self, ratio, tokens):
        config = tiny((0, ratio), mtp=1)
        self.model = build(Config.from_dict(config), checkpoint_tensors(config, 0, "float32"), torch.float64)
        ids = token_ids(config, tokens + 1, batch=2)
        self.next_ids = ids[:, 1:]
        self.streams = self.model.streams(ids[:, :-1])
        super().__init__(tokens)

    def run(self, chunks, stateless=False):
        state = None if stateless else MTPState()

        def step(start, stop):
            return self.model.mtp_logits(self.streams[:, start:stop], self.next_ids[:, start:stop], state)

        return in_calls(step, chunks)


@pytest.mark.parametrize(
    ("ratio", "tokens"),
    [*((ratio, tokens) for ratio in (2, 4, 8) for tokens in AROUND_4), *((128, tokens) for tokens in AROUND_128)],
)
def test_compressor_at_every_split(ratio, tokens):
    subject = Compressor(ratio, tokens)
    assert subject.whole.shape[1] == tokens // ratio
    assert subject.every_split() == {}


@pytest.mark.parametrize(
    ("ratios", "tokens"),
    [((0, 4), 11), ((4, 4), 21), ((2, 8), 17), ((4, 128), 130)],
    ids=["window", "more rows than are kept", "other ratios", "128"],
)
def test_model_at_every_split(ratios, tokens):
    assert Model(ratios, tokens).every_split() == {}


@pytest.mark.parametrize("ratio", [0, 4])
def test_mtp_at_every_split(ratio):
    assert MTP(ratio, 14).every_split() == {}


@st.composite
def pieces(draw, lengths):
    return draw(chunkings(draw(st.sampled_from(lengths))))


@settings(max_examples=60)
@given(pieces(AROUND_4), st.sampled_from((2, 4, 8)))
def test_compressor_in_any_pieces(chunks, ratio):
    assert Compressor(ratio, sum(chunks)).ratio(chunks) <= 1


@settings(max_examples=15)
@given(pieces(AROUND_128))
def test_compressor_at_128_in_any_pieces(chunks):
    assert Compressor(128, sum(chunks)).ratio(chunks) <= 1


@settings(max_examples=25)
@given(pieces((5, 8, 13, 16, 21)), st.sampled_from(((0, 4), (4, 2), (8, 4))))
def test_model_in_any_pieces(chunks, ratios):
    assert Model(ratios, sum(chunks)).ratio(chunks) <= 1


@settings(max_examples=8)
@given(pieces((127, 129, 131)))
def test_model_around_128_in_any_pieces(chunks):
    assert Model((4, 128), sum(chunks)).ratio(chunks) <= 1


@settings(max_examples=15)
@given(pieces((5, 8, 13)), st.sampled_from((0, 4)))
def test_mtp_in_any_pieces(chunks, ratio):
    assert MTP(ratio, sum(chunks)).ratio(chunks) <= 1


@pytest.mark.parametrize("ratios", [(4, 4), (8, 2)])
def test_a_state_that_forgets_is_seen(ratios):
    """The limit is tight enough: one pending token less in the compressor's state, at a split inside a block."""
    subject = Model(ratios, 18)

    def forget(chunks, stateless=False):
        state = subject.model.new_state()
        first = subject.model(subject.ids[:, :7], state)
        pending = state.layers[0].compressor
        pending.kv[:, -1] = 0
        return torch.cat((first, subject.model(subject.ids[:, 7:], state)), 1)

    subject.run = forget
    assert subject.ratio((7, 11)) > 1


def test_a_new_state_starts_from_nothing():
    """A prompt shorter than a block after a longer one: the published program's stale rows must not come back."""
    subject = Model((4,), 3)
    other = subject.model.new_state()
    subject.model(token_ids(tiny((4,)), 19), other)
    assert subject.ratio((1, 1, 1)) <= 1
