"""How many tokens, and in which calls they come: around the window, around every ratio, with remainders (method,
section 5)."""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def lengths(draw, config: dict, most: int, least: int = 1) -> int:
    """A token count at a boundary of this config, or a few tokens from one, between `least` and `most`."""
    window, topk = config["sliding_window"], config["index_topk"]
    edges = {1, window - 1, window, window + 1, 2 * window, 2 * window + 1, 3 * window + 2}
    for ratio in {*config["compress_ratios"]} - {0}:
        edges |= {ratio - 1, ratio, ratio + 1, 2 * ratio - 1, 2 * ratio, 2 * ratio + 3, 3 * ratio + 1}
        edges |= {ratio * (topk + 1), ratio * (topk + 3) + 1, ratio * 2 * topk + ratio - 1}
    if 128 in config["compress_ratios"]:
        edges |= {127, 128, 129, 128 + window, 257, 300}
    usable = sorted(edge for edge in edges if least <= edge <= most)
    # the longer half four times over, so that most examples cross the boundaries; shrinking still goes to the front
    # of the list
    return draw(st.sampled_from(usable + usable[len(usable) // 2 :] * 3))


@st.composite
def chunkings(draw, total: int) -> tuple[int, ...]:
    """`total` tokens as calls: one, one and then token by token, all by ones, or random pieces that cut groups at
    every phase.

    One shot and pieces come most often: what is wrong without a cache shows in nothing else, and pieces hold single
    tokens as well as several at once, behind a past of any length.
    """
    if total == 1:
        return (1,)
    kind = draw(st.sampled_from(("oneshot", "pieces", "prefill", "oneshot", "pieces", "tokens")))
    if kind == "oneshot":
        return (total,)
    if kind == "tokens" and total <= 48:
        return (1,) * total
    prefill = draw(st.integers(1, total - 1))
    if kind == "prefill" and total - prefill <= 48:
        return (prefill, *[1] * (total - prefill))
    pieces, left = [], total
    while left and len(pieces) < 12:
        pieces.append(min(left, draw(st.sampled_from((5, 1, 2, 3, 1, 4, 7, 1, 31)))))
        left -= pieces[-1]
    return tuple(pieces) if not left else (*pieces, left)
