"""Hyper-connections against spec 4, written as loops over numbers.

Run: pytest tests/test_reference_hyper_connection.py
"""

import numpy as np
import pytest
import torch
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

from reference_torch import Config
from reference_torch.hyper_connection import HyperConnection, HyperHead, sinkhorn

EPS64 = torch.finfo(torch.float64).eps


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def sinkhorn_by_loops(logits: np.ndarray, iters: int, eps: float) -> np.ndarray:
    """Spec 4.1: one softmax of rows, `iters` steps over columns, `iters` - 1 over rows, columns last."""
    n = len(logits)
    a = np.zeros((n, n))
    for j in range(n):
        row = np.exp(logits[j] - logits[j].max())
        for k in range(n):
            a[j, k] = row[k] / row.sum() + eps
    for step in range(iters):
        if step:
            for j in range(n):
                total = sum(a[j, k] for k in range(n)) + eps
                for k in range(n):
                    a[j, k] /= total
        for k in range(n):
            total = sum(a[j, k] for j in range(n)) + eps
            for j in range(n):
                a[j, k] /= total
    return a


def site(kind, seed=0, **changed):
    """A mixing site in float64 with weights far from symmetric; and streams for it [1, 2, n, D]."""
    config = Config.from_dict(tiny((0,), hc_eps=1e-3, rms_norm_eps=1e-2, **changed))
    random = torch.Generator().manual_seed(seed)
    module = kind(config).double().requires_grad_(False)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    module.fn.mul_(0.3)
    shape = (1, 2, config.hc_mult, config.hidden_size)
    return config, module, torch.randn(shape, generator=random, dtype=torch.float64)


def numbers(module):
    return tuple(getattr(module, name).numpy() for name in ("fn", "base", "scale"))


def close(a, b):
    """Equal to the rounding of a few dozen float64 operations."""
    return np.allclose(np.asarray(a), b, rtol=1000 * EPS64, atol=1000 * EPS64)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("iters", [1, 2, 3, 20])
@pytest.mark.parametrize("eps", [1e-6, 3e-2])
def test_sinkhorn_takes_its_steps_in_this_order(n, iters, eps):
    logits = 3 * torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    assert close(sinkhorn(logits, iters, eps), sinkhorn_by_loops(logits.numpy(), iters, eps))


@given(st.lists(st.floats(-30, 30), min_size=16, max_size=16), st.integers(1, 20))
def test_columns_sum_to_one_because_their_step_is_last(logits, iters):
    comb = sinkhorn(torch.tensor(logits, dtype=torch.float64).reshape(4, 4), iters, 1e-6)
    columns = comb.sum(-2)
    assert (comb >= 0).all()
    assert (columns <= 1).all()
    # The last step leaves S/(S + eps), and after the softmax no column sums to less than 4 eps.
    assert (columns >= 0.8 * (1 - 16 * EPS64)).all()


@pytest.mark.parametrize("seed", range(5))
def test_without_eps_columns_sum_to_one_and_rows_only_in_the_limit(seed):
    logits = 3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    off = []
    for iters in (1, 3, 20):
        comb = sinkhorn(logits, iters, 0.0)
        assert close(comb.sum(-2), np.ones(4))
        off.append((comb.sum(-1) - 1).abs().max().item())
    assert off[0] > off[1] > off[2]


def test_pre_by_loops():
    config, module, streams = site(HyperConnection)
    u, post, comb = module.pre(streams)
    (fn, base, scale), n = numbers(module), config.hc_mult
    for token, x in enumerate(streams[0].numpy()):
        flat = x.reshape(-1)  # stream-major
        rho = 1 / np.sqrt((flat**2).sum() / flat.size + config.rms_norm_eps)  # norm_eps, not hc_eps
        m = [sum(flat[i] * fn[row, i] for i in range(flat.size)) * rho for row in range((2 + n) * n)]
        pre = [sigmoid(m[j] * scale[0] + base[j]) + config.hc_eps for j in range(n)]
        assert close(post[0, token], [2 * sigmoid(m[n + j] * scale[1] + base[n + j]) for j in range(n)])
        rows = [[m[2 * n + j * n + k] * scale[2] + base[2 * n + j * n + k] for k in range(n)] for j in range(n)]
        assert close(comb[0, token], sinkhorn_by_loops(np.array(rows), config.hc_sinkhorn_iters, config.hc_eps))
        assert close(u[0, token], sum(pre[j] * x[j] for j in range(n)))


def test_post_sums_over_the_first_index():
    _, module, streams = site(HyperConnection)
    random = torch.Generator().manual_seed(1)
    v = torch.randn(1, 2, streams.shape[-1], generator=random, dtype=torch.float64)
    post = torch.randn(1, 2, 4, generator=random, dtype=torch.float64)
    comb = torch.randn(1, 2, 4, 4, generator=random, dtype=torch.float64)
    mixed = module.post(v, streams, post, comb)
    transposed = module.post(v, streams, post, comb.mT)
    for token in range(2):
        for k in range(4):
            own = sum(comb[0, token, j, k] * streams[0, token, j] for j in range(4))
            assert close(mixed[0, token, k], post[0, token, k] * v[0, token] + own)
            assert not close(transposed[0, token, k], post[0, token, k] * v[0, token] + own)


def test_head_by_loops():
    config, module, streams = site(HyperHead)
    y = module(streams)
    fn, base, scale = numbers(module)
    for token, x in enumerate(streams[0].numpy()):
        flat = x.reshape(-1)
        rho = 1 / np.sqrt((flat**2).mean() + config.rms_norm_eps)
        pre = [sigmoid(flat @ fn[j] * rho * scale[0] + base[j]) + config.hc_eps for j in range(config.hc_mult)]
        assert close(y[0, token], sum(pre[j] * x[j] for j in range(config.hc_mult)))


def test_bfloat16_streams_are_mixed_wide_and_rounded_once():
    config = Config.from_dict(tiny((0,)))
    module = HyperConnection(config).requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    streams = torch.randn(1, 3, 4, config.hidden_size, generator=random).to(torch.bfloat16)
    narrow, wide = module.pre(streams), module.pre(streams.float())
    assert [x.dtype for x in narrow] == [torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(narrow[0], wide[0].to(torch.bfloat16))
    assert torch.equal(narrow[2], wide[2])
    v = wide[0].to(torch.bfloat16)
    expected = module.post(v.float(), streams.float(), *wide[1:]).to(torch.bfloat16)
    assert torch.equal(module.post(v, streams, *narrow[1:]), expected)
