"""Sampling with drafts by MTP blocks: by count, tokens are as likely as in plain sampling, whatever the drafts are.

Run: pytest tests/test_dsv4_mlx_sampling.py
"""

from collections import Counter
from itertools import islice, pairwise, product
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from helpers import sentence, tiny, token_ids
from mlx_lm.sample_utils import make_sampler

from dsv4_mlx import TokenStream, UsageError, generate
from dsv4_mlx.sampling import Sampled, rule_of
from parity.cases.strategies import checkpoint_tensors
from parity.judging.sides import MLXSide

V = 6
PROMPT = [3, 1, 4]
DRAFTED = 2  # the 2nd token and the 3rd
OPTIONS = {
    "temperature": {"temp": 0.6},
    "top p": {"temp": 1.3, "top_p": 0.8},
    "top k, min p": {"temp": 1.0, "top_k": 4, "min_p": 0.1},
}


class Ids(list):
    """A cache of token ids."""

    state = ()
    size = list.__len__

    def trim(self, count):
        del self[len(self) - count :]


class Table:
    """A model of nothing but chances: random logits of the next token for each pair of tokens before it.

    Its streams are those pairs. The MTP block has a table of its own: its drafts are likely and unlikely ones.
    """

    def __init__(self, seed=1):
        random = np.random.default_rng(seed)
        self.tables = [mx.array(random.normal(size=(V, V, V), scale=1.2), dtype=mx.float32) for _ in range(2)]
        self.mtp, self.args = ["block"], SimpleNamespace(vocab_size=V)

    def make_cache(self):
        return [Ids()]

    make_mtp_cache = make_cache

    def streams(self, ids, cache):
        (held,) = cache
        before = [*held[-1:], *ids[0].tolist()] if held else [0, *ids[0].tolist()]
        held.extend(ids[0].tolist())
        return mx.array([[*pairwise(before)]])[..., None]

    def mtp_streams(self, streams, next_ids, cache, depth):
        cache[depth].extend(next_ids[0].tolist())
        return mx.stack([streams[:, :, 1], next_ids[..., None]], axis=2)

    def logits(self, streams, table=0):
        return self.tables[table][streams[:, :, 0, 0], streams[:, :, 1, 0]]

    def mtp_head(self, streams, depth):
        return self.logits(streams, 1)

    def __call__(self, ids):
        return self.logits(mx.stack([ids[:, :-1], ids[:, 1:]], axis=2)[..., None])


class AlwaysAccepts(Sampled):
    def verify(self, logits, drafts):
        return [*drafts[0].tolist(), super().verify(logits, drafts)[-1]]


class DrawsAgainFromAll(Sampled):
    """A draft that fell may come again: nothing is taken from p."""

    def verify(self, logits, drafts):
        taken = len(super().verify(logits, drafts)) - 1
        own = mx.random.categorical(self._log(logits)[0, taken], key=self._next_key())
        return [*drafts[0, :taken].tolist(), own.item()]


class LeavesOutTheDraftAlone(Sampled):
    """After a fall p without the draft: right for a drafter that has one draft only, wrong for one that draws."""

    def verify(self, logits, drafts):
        found = super().verify(logits, drafts)
        taken = len(found) - 1
        if taken < drafts.shape[1]:
            p = mx.softmax(self._log(logits)[0, taken], axis=-1) * (mx.arange(V) != drafts[0, taken])
            found[-1] = mx.random.categorical(mx.log(p), key=self._next_key()).item()
        return found


def plain(model, options):
    """Probabilities [V, V, V] of the first three tokens, after calls that know neither cache nor draft."""
    ids = np.array([[*PROMPT, *pair] for pair in product(range(V), repeat=2)])
    logits = np.array(model(mx.array(ids)), dtype=np.float64)[:, -3:].reshape(V, V, 3, V)
    first, second, third = (chances(rows, **options) for rows in (logits[0, 0, 0], logits[:, 0, 1], logits[..., 2, :]))
    return first[:, None, None] * second[:, :, None] * third


def chances(logits, temp, top_p=1.0, top_k=0, min_p=0.0):
    """Written anew, in numpy."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(-p, axis=-1)
    rank = np.argsort(order, axis=-1)
    above = np.take_along_axis(np.cumsum(np.take_along_axis(p, order, -1), -1), rank, -1) - p
    kept = (above < top_p) & (p >= min_p * p.max(-1, keepdims=True))
    kept &= rank < (top_k or logits.shape[-1])
    p = np.where(kept, p ** (1 / temp), 0)
    return p / p.sum(-1, keepdims=True)


def counted(model, options, seeds, rule=None):
    """How often each three tokens came, and how many of the drafted two were drafts that stood."""
    found, stood = Counter(), 0
    for seed in range(seeds):
        stream = TokenStream(model, PROMPT, max_tokens=2 + DRAFTED, draft_tokens=DRAFTED, seed=seed, **options)
        if rule is not None:
            stream.rule.__class__ = rule
        three = [*islice(stream, 3)]
        assert not three[0][1]
        found[tuple(token for token, _ in three)] += 1
        stood += sum(from_draft for _, from_draft in three)
    return found, stood


def likelihood(found, expected):
    """The chi-square test's p value for counts of the pairs of 2nd and 3rd token; rare pairs count as one."""
    total = sum(found.values())
    pairs = Counter()
    for (_, *pair), count in found.items():
        pairs[tuple(pair)] += count
    expected = expected.sum(axis=0) * total
    assert all(expected[pair] > 0 for pair in pairs)
    often = expected >= 5
    seen = np.array([[pairs[row, column] for column in range(V)] for row in range(V)])
    cells = [*zip(seen[often], expected[often], strict=True), (seen[~often].sum(), expected[~often].sum())]
    cells = [(count, mean) for count, mean in cells if mean > 0]
    square = sum((count - mean) ** 2 / mean for count, mean in cells)
    return torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(square / 2)).item()


# --- counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_drafted_tokens_are_as_likely_as_in_plain_sampling(options):
    model, seeds = Table(), 1000
    found, stood = counted(model, options, seeds)
    assert likelihood(found, plain(model, options)) > 0.01
    assert seeds * 0.3 < stood < seeds * DRAFTED * 0.95  # drafts stood, and fell


@pytest.mark.parametrize("rule", [AlwaysAccepts, DrawsAgainFromAll, LeavesOutTheDraftAlone])
def test_a_wrong_rule_is_seen(rule):
    model, options = Table(), {"temp": 0.6}
    found, _ = counted(model, options, 1000, rule)
    assert likelihood(found, plain(model, options)) < 1e-6


def test_drafts_stand_as_often_as_any_rule_allows():
    """In 1 - sum |p - q| / 2 of the cases, which for a drafter that is the model is always."""
    model, options, seeds = Table(), {"temp": 0.8}, 700
    model.tables[1] = model.tables[0]
    assert counted(model, options, seeds)[1] == seeds * DRAFTED
    rows = mx.random.normal((2, 1, 1, V), key=mx.random.key(5)) * 2
    p, q = (chances(np.array(row, dtype=np.float64)[0, 0], **options) for row in rows)
    rule, stood = rule_of(V, **options, seed=1), 0
    for _ in range(1000):
        drafts = rule.draft(rows[1])
        stood += len(rule.verify(mx.concatenate([rows[0], rows[0]], axis=1), drafts)) - 1
    assert stood / 1000 == pytest.approx(1 - abs(p - q).sum() / 2, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "right"), [(None, True), (AlwaysAccepts, False), (DrawsAgainFromAll, False)])
def test_a_real_model_is_counted_too(rule, right):
    """With its own caches, and its own MTP block's drafts."""
    config, options = tiny((0, 4, 0), mtp=1, vocab_size=V), {"temp": 0.5}
    model = MLXSide(config, {}, checkpoint_tensors(config, 0, "float32"), "float32").model
    found, _ = counted(model, options, 1200, rule)
    value = likelihood(found, plain(model, options))
    assert value > 0.01 if right else value < 1e-6


# --- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [*OPTIONS.values(), {"temp": 0.7, "top_p": 0.5, "top_k": 3, "min_p": 0.05}])
def test_what_is_left_out_is_what_mlx_lm_leaves_out(options):
    logits = mx.random.normal((1, 4, 40), key=mx.random.key(2)) * 3
    own = mx.softmax(rule_of(40, **options)._log(logits), axis=-1)
    assert np.allclose(np.array(own), chances(np.array(logits, dtype=np.float64), **options), atol=1e-6)
    sampler, mine = make_sampler(**options), np.array(own)[0]
    rows = mx.repeat(logits[0] - mx.logsumexp(logits[0], axis=-1, keepdims=True), 500, axis=0)
    seen = np.array(sampler(rows)).reshape(4, 500)
    assert all(mine[row, token] > 0 for row in range(4) for token in seen[row])


@pytest.fixture(scope="module")
def model():
    config = tiny((0, 4, 0), mtp=1)
    return MLXSide(config, {}, checkpoint_tensors(config, 0, "float32"), "float32").model


def test_a_seed_says_which_tokens_come(model):
    prompt = token_ids(tiny((0, 4, 0)), 9, seed=3)[0].tolist()
    given = {"max_tokens": 12, "draft_tokens": 3, "temp": 1.0}
    first, again, other = (generate(model, None, prompt, **given, seed=seed) for seed in (7, 7, 8))
    assert first == again != other
    mx.random.seed(7)
    loose = generate(model, None, prompt, **given)
    assert loose != generate(model, None, prompt, **given)
    mx.random.seed(7)
    assert loose == generate(model, None, prompt, **given)
    greedy = generate(model, None, prompt, max_tokens=12)
    assert greedy == generate(model, None, prompt, max_tokens=12, temp=0, top_p=0.5, seed=3)
    assert greedy == generate(model, None, prompt, max_tokens=12, draft_tokens=2, temp=5.0, top_k=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temp": -1}, "temp is -1; give a number at least 0."),
        ({"temp": float("nan")}, "temp is nan; give a number at least 0."),
        ({"temp": "1"}, "temp is 1; give a number at least 0."),
        ({"top_p": 1.5}, "top_p is 1.5; give a number from 0 to 1."),
        ({"min_p": -0.1}, "min_p is -0.1; give a number from 0 to 1."),
        ({"top_k": 48}, "top_k is 48; give a whole number from 0 to 47."),
        ({"top_k": 1.0}, "top_k is 1.0; give a whole number from 0 to 47."),
        ({"seed": -1}, "seed is -1; give a whole number from 0 to 2^64 - 1."),
    ],
)
def test_misuse(model, options, said):
    assert sentence(UsageError, lambda: TokenStream(model, [1], **options)) == said
