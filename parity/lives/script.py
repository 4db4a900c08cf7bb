"""A life as a script of mlx-lm calls: what its reader can run, step through and cut further."""

from __future__ import annotations

from collections.abc import Iterable

# What the lines of a life need, beside `model`.
IMPORTS = """import copy

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import (
    LRUPromptCache, load_prompt_cache, make_prompt_cache, save_prompt_cache, trim_prompt_cache,
)
"""
HELPERS = '''
def call(ids, cache):
    """The logits of token ids [B, S]."""
    y = model(mx.array(ids), cache=cache)
    y = getattr(y, "logits", y)
    mx.eval(y)
    return y


def alone(ids):
    """The logits of all these tokens in one call, or in one of each beginning: what the port is held to."""
    y = call([ids], make_prompt_cache(model))[0]
    if len(y) == len(ids):
        return y
    return mx.concatenate([call([ids[: n + 1]], make_prompt_cache(model))[0] for n in range(len(ids))])


class Known:
    """Processes logits [1, V]: keeps them, and makes the next known token the likeliest."""

    def __init__(self, coming):
        self.coming, self.heard = coming, []

    def __call__(self, tokens, logits):
        self.heard.append(logits[0])
        wanted = self.coming[min(len(self.heard), len(self.coming)) - 1]
        return logits + 1e4 * (mx.arange(logits.shape[-1]) == wanted)


def step(generator, finished):
    """One step of a BatchGenerator; the last response of what is done."""
    for response in generator.next_generated():
        if response.finish_reason is not None:
            finished[response.uid] = response
'''


def assign(to: str, what: str) -> str:
    """A line that gives a cache its name."""
    return f"{to} = {what}"


def merged(to: str, names: Iterable[str]) -> str:
    """Single sequences as a batch."""
    listed = ", ".join(names)
    return f"{to} = [entries[0].merge([*entries]) for entries in zip({listed})]"


def each(name: str, method: str, *given: object, **named: object) -> str:
    """A method of every entry of a cache."""
    shown = [repr(one) for one in given] + [f"{key}={value!r}" for key, value in named.items()]
    return f"for entry in {name}: entry.{method}({', '.join(shown)})"


def compared(got: str, ids: list[int], token: int) -> list[str]:
    """Lines that print how far the logits of a token are from those of one call."""
    return [
        f"ids = {ids}",
        f"print('token {token} is off by', mx.abs({got} - alone(ids)[{token}]).max().item())",
    ]
