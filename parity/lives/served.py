"""mlx-lm itself around a port: its generator, its batches that requests join and leave, its store of prompts.

Requests are made of tokens that are known beforehand: what processes the logits keeps them and makes the next known
token the likeliest, so that sampling waits for the port as it always does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import LRUPromptCache

from . import script
from .offers import pending, words_of
from .operations import operation, undrawn
from .port import Port
from .sessions import Session

# What mlx-lm's generator, its batches and its store of prompts ask of a port's caches, as `offers.OFFERS` has it.
NEEDS = {
    "steps": (),
    "batches": ("merge", "extract", "filter", "extend", "ragged", "branch"),
    "turns": ("branch", "weigh"),
}
STEPS = (1, 3, 64, 2048)
AHEAD = 1e4  # by which the next token leads, far above logits and within any type
NAME = "model"  # of the port, in the store of prompts


def lives(schedule: str, seed: int) -> list[list[tuple[str, dict]]]:
    """Of a schedule, at each seed in another phase of the blocks: inside a block of 128 tokens and past it."""
    phase = {"seed": seed}
    shift = seed % 4
    if schedule == "steps":
        prompts = [(37 + shift, step) for step in STEPS] + [(140 + shift, step) for step in STEPS[2:]]
        return [[("serve_steps", {"prompt": prompt, "tokens": 6, "step": step} | phase)] for prompt, step in prompts]
    if schedule == "batches":
        short = {
            "prompts": [9 + shift, 1, 34, 6, 2, 17, 5, 21],
            "arrivals": [0, 0, 0, 0, 2, 3, 5, 5],
            "tokens": [12, 4, 6, 9, 8, 3, 7, 5],
        }
        long = {"prompts": [130 + shift, 3, 40], "arrivals": [0, 0, 2], "tokens": [6, 9, 5]}
        return [
            [("serve_batches", short | {"again": 7, "step": 8} | phase)],
            [("serve_batches", long | {"again": 3, "step": 64} | phase)],
        ]
    lengths = ((9, 5), (20, 12), (133, 129))  # nothing overwritten yet, a window later, past a block of 128
    return [
        [("serve_turns", {"prompt": prompt + shift, "shared": shared, "more": 5, "tokens": 6, "step": 64} | phase)]
        for prompt, shared in lengths
    ]


def lacking(schedule: str, port: Port, gaps: dict[str, str]) -> str:
    """What a schedule needs that the port's caches do not offer, by their `offers.gaps`, as a sentence; or nothing."""
    missing = next((name for name in NEEDS[schedule] if name in gaps), None)
    if missing:
        return f"mlx-lm needs {words_of(missing)} for it. {gaps[missing]}"
    # Of the class: a property may have nothing to give while the cache is empty.
    lacks = lambda one: not hasattr(type(one), "state") and "state" not in getattr(one, "__dict__", {})  # noqa: E731
    entry = next(filter(lacks, port.make_cache()), None)
    return f"mlx-lm needs `state` for it, which {type(entry).__name__} does not have." if entry is not None else ""


@dataclass
class Request:
    """Tokens that the cache is known to hold, those of the prompt after it, those to come; logits [V] after the prompt
    and after each of those to come."""

    held: list[int]
    prompt: list[int]
    coming: list[int]
    heard: list[mx.array] = field(default_factory=list)

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """Processes logits [1, V], as mlx-lm calls it."""
        self.heard.append(logits[0])
        wanted = self.coming[min(len(self.heard), len(self.coming)) - 1]
        return logits + AHEAD * (mx.arange(logits.shape[-1]) == wanted)

    @property
    def ids(self) -> list[int]:
        """All tokens, once it is through."""
        return self.held + self.prompt + self.coming


class AsModel:
    """The port as the model that mlx-lm calls."""

    def __init__(self, port: Port):
        self.port, self.make_cache = port, port.make_cache

    def __call__(self, ids: mx.array, cache: list) -> mx.array:
        return self.port.call(ids, cache)


class Served:
    """Operations of a life in which mlx-lm drives the port; none is drawn, as each is a life by itself."""

    @operation(undrawn)
    def generate(self, prompt, tokens):
        """At length, evaluating the logits alone as mlx-lm's generator does: nothing may pile up in a fresh cache."""
        self.current = Session([], [], done=[f"{prompt} tokens", f"{tokens} generated"])
        found = pending(self.port, prompt, tokens)
        assert not found, found
        self.lives.generations += 1

    @operation(undrawn)
    def serve_steps(self, prompt, tokens, step, seed):
        """One request through `generate_step`, its prompt in pieces."""
        random = np.random.default_rng(seed)
        self.current = Session([], [], done=[f"generate_step with prefill_step_size={step}"])
        self.script.append("c0 = make_prompt_cache(model)")
        self._generated(self._request(random, [], prompt, tokens), self.port.make_cache(), step, "c0")

    @operation(undrawn)
    def serve_batches(self, prompts, arrivals, tokens, again, step, seed):
        """Requests of unequal length through one BatchGenerator, each arriving at its step and leaving when it is done;
        the first to leave comes back with its cache and `again` tokens more. A prompt of 0 tokens is no request."""
        random = np.random.default_rng(seed)
        requests = [
            (self._request(random, [], prompt, coming), arrival)
            for prompt, arrival, coming in zip(prompts, arrivals, tokens, strict=True)
            if prompt
        ]
        lengths = ", ".join(f"{len(one.prompt)} at step {arrival}" for one, arrival in requests)
        done = f"BatchGenerator with prefill_step_size={step}, prompts of {lengths} tokens"
        self.current = Session([], [], done=[done])
        options = {"prefill_step_size": step, "prefill_batch_size": 4, "completion_batch_size": 8}
        said = ", ".join(f"{name}={value}" for name, value in options.items())
        self.script += [f"generator, finished = BatchGenerator(model, {said}), {{}}"]
        generator = BatchGenerator(AsModel(self.port), **options)
        waiting, alive, now = [*requests], {}, 0
        try:
            while waiting or alive:
                arrived = [one for one, arrival in waiting if arrival <= now or not alive]
                waiting = [(one, arrival) for one, arrival in waiting if one not in arrived]
                self._insert(generator, alive, [(one, None) for one in arrived])
                self.script.append("step(generator, finished)")
                for response in generator.next_generated():
                    if response.finish_reason is None:
                        continue
                    one = alive.pop(response.uid)
                    self._judge(one, f"the request of {len(one.prompt)} tokens", f"r{response.uid}")
                    if again:
                        more = self._request(random, one.ids, again, 5)
                        self.current.done.append(f"the one of {len(one.prompt)} again with {again} tokens more")
                        self._insert(generator, alive, [(more, response.prompt_cache)], response.uid)
                        again = 0
                now += 1
        finally:
            generator.close()

    @operation(undrawn)
    def serve_turns(self, prompt, shared, more, tokens, step, seed):
        """A server's store of prompts: a first turn, another request that begins with `shared` tokens of it, a second
        turn with `more` tokens, and the first prompt with others after it."""
        random = np.random.default_rng(seed)
        self.current = Session([], [], done=[])
        store = LRUPromptCache()
        self.script.append("store = LRUPromptCache()")
        first = self._turn(store, random, [], prompt, tokens, step)
        self._turn(store, random, first[: min(shared, prompt)], more, tokens, step)
        self._turn(store, random, first, more, tokens, step)
        self._turn(store, random, first, more + 1, tokens, step)

    # --- helpers -------------------------------------------------------------------------------------------------

    def _turn(self, store: LRUPromptCache, random, begins: list[int], own: int, tokens: int, step: int) -> list[int]:
        """One request as mlx-lm's server has it; the tokens that its cache holds afterwards."""
        wanted = begins + self._drawn(random, max(own, 1))
        name = self.named()
        self.script.append(f"{name}, rest = store.fetch_nearest_cache({NAME!r}, {wanted})")
        self.script.append(f"{name} = {name} or make_prompt_cache(model)")
        cache, rest = store.fetch_nearest_cache(NAME, wanted)
        held = len(wanted) - len(rest) if cache is not None else 0
        found = f"{held} of them in the store of prompts" if held else "none of them in the store of prompts"
        self.current.done.append(f"a request of {len(wanted)} token{'s' * (len(wanted) > 1)}, {found}")
        if not rest:  # stored before, token by token: mlx-lm has nothing to ask then
            return wanted
        one = Request(wanted[:held], wanted[held:], self._drawn(random, max(tokens, 1)))
        cache = cache if cache is not None else self.port.make_cache()
        self._generated(one, cache, step, name)
        self.script.append(f"store.insert_cache({NAME!r}, {one.ids}, {name})")
        store.insert_cache(NAME, one.ids, cache)
        return one.ids

    def _request(self, random, held: list[int], prompt: int, coming: int) -> Request:
        return Request(held, self._drawn(random, max(prompt, 1)), self._drawn(random, max(coming, 1)))

    def _drawn(self, random, tokens: int) -> list[int]:
        return random.integers(0, self.port.vocabulary, tokens).tolist()

    def _generated(self, one: Request, cache: list, step: int, name: str):
        self.script += [
            f"r = Known({one.coming})",
            f"for _ in generate_step(mx.array({one.prompt}), model, max_tokens={len(one.coming)}, "
            f"logits_processors=[r], prompt_cache={name}, prefill_step_size={step}): pass",
        ]
        steps = generate_step(
            mx.array(one.prompt),
            AsModel(self.port),
            max_tokens=len(one.coming),
            logits_processors=[one],
            prompt_cache=cache,
            prefill_step_size=step,
        )
        for _ in steps:
            pass
        self._judge(one, "generate_step", "r")

    def _insert(self, generator: BatchGenerator, alive: dict, requests: Iterable[tuple[Request, list | None]], of=None):
        for one, cache in requests:
            name = f"r{self.named()[1:]}"
            held = "None" if cache is None else f"finished[{of}].prompt_cache"
            self.script += [
                f"{name} = Known({one.coming})",
                f"generator.insert([{one.prompt}], max_tokens=[{len(one.coming)}], caches=[{held}], "
                f"all_tokens=[{one.held}], logits_processors=[[{name}]])",
            ]
            (uid,) = generator.insert(
                [one.prompt],
                max_tokens=[len(one.coming)],
                caches=[cache],
                all_tokens=[[*one.held]],
                logits_processors=[[one]],
            )
            alive[uid] = one

    def _judge(self, one: Request, who: str, name: str):
        wrong = self.lives.judge(one.ids, mx.stack(one.heard))
        if wrong:
            token = self.lives.suspect_token
            heard = token - (len(one.ids) - len(one.heard))
            self.script += script.compared(f"{name}.heard[{heard}]", one.ids, token)
        assert not wrong, f"{who}, {wrong}"
