"""Padding: what a mask given with the tokens says about them."""

import mlx.core as mx
import numpy as np

from .errors import UsageError

HIDDEN = -1e4  # an additive mask hides from here on: bfloat16's and float16's lowest values, -1e9, -inf


def from_mask(mask: mx.array | None, tokens: int, seen: list[int]) -> tuple[list[int], list[int]] | None:
    """Left padding and real tokens of each sequence, as ``mask`` says; None where no token is padding.

    mask: [B, S] of the call's tokens, or an attention mask [S, T], [B or 1, S, T] or [B or 1, 1, S, T] whose
    last S columns are the call's, the others the tokens before, of which sequence b has ``seen[b]``. Boolean and
    integer masks are true, additive ones 0 where a token is real or may be attended to. Rows of the compressor
    mix tokens, so that an attention mask can only be causal and hide padding.
    """
    if mask is None:
        return None
    real = _real_tokens(_visible(mask), tokens, seen)
    counts = real.sum(axis=1)
    left = np.where(counts > 0, real.argmax(axis=1), 0)
    place = np.arange(tokens)
    if not np.array_equal(real, (place >= left[:, None]) & (place < (left + counts)[:, None])):
        raise UsageError("The mask hides a token between two real ones; padding can only stand at either end.")
    return None if real.all() else (left.tolist(), counts.tolist())


def _visible(mask: mx.array) -> np.ndarray:
    """A boolean array of the mask's shape, true where it hides nothing."""
    if mask.dtype == mx.bool_ or mx.issubdtype(mask.dtype, mx.integer):
        return np.array(mask) != 0
    values = np.array(mask.astype(mx.float32))
    if not ((values == 0) | (values <= HIDDEN)).all():
        raise UsageError(f"An additive mask must hold 0 or at most {HIDDEN:g}; other biases cannot be honoured.")
    return values == 0


def _real_tokens(visible: np.ndarray, tokens: int, seen: list[int]) -> np.ndarray:
    """[B, S], true for real tokens."""
    batch, shape = len(seen), visible.shape
    triangle = np.tri(tokens, dtype=bool)
    if shape == (batch, tokens) and not np.array_equal(visible, triangle):  # which would be a mask [S, S]
        return visible
    if visible.ndim == 4 and shape[1] == 1:
        visible = visible[:, 0]
    visible = visible[None] if visible.ndim == 2 else visible
    if visible.ndim != 3 or len(visible) not in (1, batch) or shape[-2] != tokens or shape[-1] < tokens:
        raise UsageError(
            f"A mask of shape {list(shape)} does not fit {batch} x {tokens} tokens; "
            f"give [{batch}, {tokens}] or [{batch}, 1, {tokens}, all tokens]."
        )
    past, own = np.split(np.broadcast_to(visible, (batch, *visible.shape[1:])), [shape[-1] - tokens], axis=2)
    real = own.diagonal(axis1=1, axis2=2)
    queries = real[:, :, None]
    if past.shape[2] and (past.sum(axis=2) != np.array(seen)[:, None])[real].any():
        raise UsageError("The mask hides tokens that the cache holds, or counts others than those.")
    if not np.array_equal(own & queries, triangle & queries & real[:, None]):
        raise UsageError("The mask is not causal with padding at the ends, which is all that DeepSeek-V4 can honour.")
    return real
