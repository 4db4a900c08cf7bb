"""Norm, router, experts, indexer and attention against small cases worked out by hand from spec 5, 6, 9 and 10.

Run: pytest tests/test_reference_parts.py
"""

import math

import pytest
import torch
from helpers import tiny

from parity.cases.strategies import checkpoint_tensors
from reference_torch import Config, Options, build
from reference_torch.attention import sink_attention
from reference_torch.experts import swiglu
from reference_torch.norm import rms_norm
from reference_torch.router import score

INF = math.inf
HASHED, ROUTED = 0, 1  # the first layer of TINY takes its experts from a table


def model(**changed):
    config = tiny((4, 4), **changed)
    return build(Config.from_dict(config), checkpoint_tensors(config, 0, "float32"), torch.float64)


# --- norm --------------------------------------------------------------------------------------------------


def test_rms_norm_is_the_mean_over_all_channels_and_eps_inside_the_root():
    x = torch.tensor([[3.0, 4.0, 0.0, 12.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, -2.0, 5.0, 0.5], dtype=torch.float64)
    root = math.sqrt((9 + 16 + 144) / 4 + 0.75)
    assert rms_norm(x, weight, 0.75).tolist() == [pytest.approx([3 / root, -8 / root, 0, 6 / root], rel=1e-15)]


def test_rms_norm_rounds_once():
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weight = torch.linspace(0.3, 3, 64)
    assert torch.equal(rms_norm(x, weight, 1e-6), rms_norm(x.float(), weight, 1e-6).to(torch.bfloat16))


# --- router ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sqrtsoftplus", lambda y: math.sqrt(math.log1p(math.exp(y)))),
        ("sigmoid", lambda y: 1 / (1 + math.exp(-y))),
        ("softmax", lambda y: math.exp(y) / (math.exp(-3) + math.exp(0.5) + math.exp(2))),
    ],
)
def test_scores(name, value):
    logits = [-3.0, 0.5, 2.0]
    expected = pytest.approx([value(y) for y in logits], rel=1e-14)
    assert score(torch.tensor(logits, dtype=torch.float64), name).tolist() == expected


def test_softplus_is_the_identity_above_20():
    assert score(torch.tensor(20.5, dtype=torch.float64), "sqrtsoftplus") == math.sqrt(20.5)


def test_bias_chooses_and_never_weighs():
    gate = model().layers[ROUTED].ffn.gate
    gate.bias.copy_(torch.tensor([0, 0, 9.0, 0, 0, 5.0]))
    scores = torch.tensor([[[0.9, 0.8, 0.1, 0.7, 0.6, 0.3]]], dtype=torch.float64)
    experts = gate.select(scores, torch.zeros(1, 1, dtype=torch.int64))
    assert experts.tolist() == [[[2, 5]]]
    # scores 0.1 and 0.3, normalised without eps, times routed_scaling_factor
    assert gate.weigh(scores, experts).tolist() == [[pytest.approx([1.5 * 0.25, 1.5 * 0.75], rel=1e-14)]]


def test_softmax_weights_are_not_normalised():
    gate = model(scoring_func="softmax").layers[ROUTED].ffn.gate
    scores = torch.tensor([[[0.5, 0.2, 0.1, 0.1, 0.05, 0.05]]], dtype=torch.float64)
    assert gate.weigh(scores, torch.tensor([[[0, 2]]])).tolist() == [[pytest.approx([0.75, 0.15], rel=1e-14)]]


def test_hash_layers_choose_by_token_and_weigh_by_score():
    gate = model().layers[HASHED].ffn.gate
    ids = torch.tensor([[3, 7, 3]])
    x = torch.randn(1, 3, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights, experts = gate(x, ids)
    assert experts.tolist() == [gate.tid2eid[ids[0]].tolist()]
    chosen = gate.scores(x).gather(-1, experts)
    assert torch.allclose(weights, 1.5 * chosen / chosen.sum(-1, keepdim=True), rtol=1e-14)


# --- experts -----------------------------------------------------------------------------------------------


def silu(x):
    return x / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("gate", "up", "expected"),
    [
        (30, 5, silu(10) * 5),  # the gate is cut from above
        (-30, 5, silu(-30) * 5),  # and only from above
        (1, 30, silu(1) * 10),
        (1, -30, silu(1) * -10),
    ],
)
def test_clamp_is_asymmetric_and_comes_before_silu(gate, up, expected):
    numbers = (torch.tensor(float(x), dtype=torch.float64) for x in (gate, up))
    assert swiglu(*numbers, 10.0).item() == pytest.approx(expected, rel=1e-13)


def test_limit_zero_clamps_nothing():
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (30.0, -40.0))
    assert swiglu(*numbers, 0.0).item() == pytest.approx(silu(30) * -40, rel=1e-13)


def test_mixture_is_the_weighted_sum_and_the_shared_expert():
    ffn = model().layers[ROUTED].ffn
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 24, generator=random, dtype=torch.float64)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    weights, experts = ffn.gate(x, ids)
    y = ffn(x, ids)
    for row, token in ((0, 0), (1, 2)):
        one = x[row, token]
        total = ffn.shared_experts(one)
        for weight, expert in zip(weights[row, token], experts[row, token], strict=True):
            total = total + ffn.experts[int(expert)](one, weight)
        assert torch.allclose(y[row, token], total, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("clamped", [True, False])
def test_shared_expert_by_revision(clamped):
    config = tiny((0,))
    tensors = checkpoint_tensors(config, 0, "float32")
    options = Options(shared_expert_clamp=clamped)
    expert = build(Config.from_dict(config), tensors, torch.float64, options).layers[0].ffn.shared_experts
    x = 30 * torch.randn(4, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gate, up = expert.w1(x), expert.w3(x)
    assert (gate > 10).any()
    assert (up.abs() > 10).any()
    assert torch.equal(expert(x), expert.w2(swiglu(gate, up, 10.0 if clamped else 0.0)))


# --- indexer -----------------------------------------------------------------------------------------------


def test_indexer_scores_by_loops():
    indexer = model().layers[1].attn.indexer
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 24, generator=random, dtype=torch.float64)
    q = torch.randn(1, 2, 16, 32, generator=random, dtype=torch.float64)
    keys = torch.randn(1, 3, 32, generator=random, dtype=torch.float64)
    scores = indexer.scores(x, q, keys)
    weights = x[0] @ indexer.weights_proj.weight.T / math.sqrt(32 * 16)
    for token in range(2):
        for row in range(3):
            dots = [max(float(q[0, token, head] @ keys[0, row]), 0) for head in range(16)]
            total = sum(w * dot for w, dot in zip(weights[token].tolist(), dots, strict=True))
            assert scores[0, token, row].item() == pytest.approx(total, rel=1e-12)


def test_indexer_takes_the_best_of_the_visible_rows():
    indexer = model().layers[1].attn.indexer  # index_topk is 3
    scores = torch.tensor([[[9.0, 1, 5, 7, 8]] * 5])
    rows = indexer.select(scores, torch.tensor([0, 1, 3, 4, 5]))
    picked = [sorted(row) for row in rows[0].tolist()]
    assert picked == [[-1, -1, -1], [-1, -1, 0], [0, 1, 2], [0, 2, 3], [0, 3, 4]]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_indexer_with_fewer_rows_than_it_keeps(rows):
    indexer = model().layers[1].attn.indexer
    picked = indexer.select(torch.ones(1, 1, rows), torch.tensor([rows]))
    assert sorted(picked[0, 0].tolist()) == list(range(rows))


# --- attention ---------------------------------------------------------------------------------------------


def test_sink_takes_mass_gives_no_value_and_is_not_scaled():
    q = torch.tensor([[[[2.0, 0.0]]]], dtype=torch.float64)  # one query of one head
    keys = torch.tensor([[[1.0, 3.0], [-1.0, 5.0], [9.0, 9.0]]], dtype=torch.float64)
    mask = torch.tensor([[[True, True, False]]])
    a, b, sink = math.exp(0.5 * 2), math.exp(0.5 * -2), math.exp(1.5)
    total = a + b + sink
    out = sink_attention(q, keys, mask, torch.tensor([1.5], dtype=torch.float64), 0.5)
    assert out.flatten().tolist() == pytest.approx([(a - b) / total, (3 * a + 5 * b) / total], rel=1e-14)


@pytest.mark.parametrize("sink", [-1e4, 700.0])
def test_sink_far_from_the_keys(sink):
    """The sink takes no part in the maximum: far below it is nothing, far above it takes all."""
    q, keys = torch.ones(1, 1, 1, 2, dtype=torch.float64), torch.ones(1, 1, 2, dtype=torch.float64)
    out = sink_attention(q, keys, torch.ones(1, 1, 1, dtype=torch.bool), torch.tensor([sink]), 1.0)
    expected = [1.0, 1.0] if sink < 0 else [math.exp(2 - sink)] * 2
    assert out.flatten().tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("ratio", [0, 8])
def test_visible_keys(ratio):
    """A window of 5 with self, and a block from its own last token on."""
    attention = build_attention(ratio)
    rows = torch.zeros(1, 2, 16) if ratio else None
    mask = attention.visibility(torch.arange(6, 16), 2, rows, None)[0]
    for query, seen in zip(range(6, 16), mask, strict=True):
        window = [key for key in range(2, 16) if seen[key - 2]]
        assert window == [key for key in range(2, 16) if query - 5 < key <= query]
        if ratio:
            assert seen[14:].tolist() == [query >= 7, query >= 15]


def build_attention(ratio):
    config = tiny((ratio,))
    return build(Config.from_dict(config), checkpoint_tensors(config, 0, "float32"), torch.float64).layers[0].attn


@pytest.mark.parametrize("ratio", [0, 8])
def test_what_lies_outside_the_window_is_not_seen(ratio):
    """Changing a token changes the outputs from it on, and in a window-only layer for window-1 tokens more."""
    attention = build_attention(ratio)
    x = torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other = x.clone()
    other[:, 9] += 1
    moved = (attention(x) != attention(other)).any(-1)[0].nonzero().flatten().tolist()
    # at ratio 8 token 9 is in block 1, which queries see from token 15 on
    assert moved == (list(range(9, 14)) if ratio == 0 else [*range(9, 14), *range(15, 24)])


# --- the whole model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([[48]], "a token id is outside 0 .. 47; check the tokenizer."),
        ([[-1]], "a token id is outside 0 .. 47; check the tokenizer."),
        ([[]], "token ids have shape (1, 0); they need the shape (batch, tokens) and at least one token."),
        ([1, 2], "token ids have shape (2,); they need the shape (batch, tokens) and at least one token."),
    ],
)
def test_ids_that_no_model_can_read(ids, said):
    with pytest.raises(ValueError, match="token id") as caught:
        model()(torch.tensor(ids, dtype=torch.int64))
    assert str(caught.value) == said


def test_batch_rows_do_not_see_each_other():
    reference = model()
    ids = torch.randint(0, 48, (2, 19), generator=torch.Generator().manual_seed(0))
    both = reference(ids)
    for row in range(2):
        alone = reference(ids[row : row + 1])
        assert torch.allclose(both[row], alone[0], rtol=1e-12, atol=1e-12)
