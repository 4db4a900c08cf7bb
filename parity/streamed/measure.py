"""Figures that compare two tensors, two distributions, two choices: for people; the limits are in `tolerance`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .results import TOP, Agreement, Distance


def distance(truth: Tensor, got: Tensor) -> Distance:
    """How far ``got`` is from ``truth``; infinite where a value is not finite."""
    truth, got = truth.double().flatten(), got.double().flatten()
    if not (truth.isfinite().all() and got.isfinite().all()):
        return Distance(math.inf, 0.0, math.inf)
    error, size = (got - truth).norm(), truth.norm()
    relative = float(error / size) if size > 0 else (0.0 if error == 0 else math.inf)
    norms = size * got.norm()
    cosine = float(truth @ got / norms) if norms > 0 else float(relative == 0)
    return Distance(relative, cosine, float((got - truth).abs().max()))


def sqnr(truth: Tensor, got: Tensor) -> float:
    """Signal to quantisation noise in dB: 10 log10 of sum w^2 / sum (w' - w)^2; infinite where they are equal."""
    truth, got = truth.double(), got.double()
    noise, signal = float((got - truth).square().sum()), float(truth.square().sum())
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf


def agreement(truth: Tensor, got: Tensor, ids: Tensor) -> Agreement:
    """truth and got are logits [S, V], ids [S] the tokens that they were computed from."""
    p, q = truth.double().log_softmax(-1), got.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    k = min(TOP, p.shape[-1])
    best, best_got = p.topk(k, -1).indices, q.topk(k, -1).indices
    shared = (best[:, :, None] == best_got[:, None, :]).any(-1).double().mean()
    return Agreement(
        kl=float(kl.mean()),
        kl_99=float(kl.quantile(0.99)),
        kl_largest=float(kl.max()),
        top1=float((best[:, 0] == best_got[:, 0]).double().mean()),
        topk=float(shared),
        perplexity_truth=_perplexity(p, ids),
        perplexity_got=_perplexity(q, ids),
    )


def _perplexity(log_probabilities: Tensor, ids: Tensor) -> float:
    """exp of the mean negative log probability of each token after the first; NaN for a single token."""
    if len(ids) < 2:
        return math.nan
    return float(torch.exp(-log_probabilities[:-1].gather(-1, ids[1:, None]).mean()))
