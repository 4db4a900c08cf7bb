"""Generation in which the MTP blocks draft tokens and the backbone verifies them (spec 11)."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from numbers import Integral

import mlx.core as mx

from .cache import LayerCache
from .errors import UsageError
from .model import Model
from .pool import REWIND
from .sampling import Greedy, Sampled, rule_of

MOST_DRAFTS = REWIND - 1  # a call that verifies them is of REWIND tokens, all of which a cache can take back
COMPARED = 16  # tokens that are decoded plainly to tell a speed-up


class Drafter:
    """The MTP blocks and their caches, which between drafts hold true tokens only.

    Block 0 reads the backbone's streams at position i and token i + 1. Block m reads the streams that block m - 1 gave
    at position i and token i + m + 1. Further drafts apply the last block again, to its own streams.
    """

    def __init__(self, model: Model, draft_tokens: int, rule: Greedy | Sampled):
        self.model, self.cache, self.rule = model, model.make_mtp_cache(), rule
        self.blocks = min(len(model.mtp), draft_tokens)  # no draft would read what those behind keep
        # Of each block the streams at its last position: the next block has not read them, its token was unknown.
        self.last: list[mx.array | None] = [None] * self.blocks

    def feed(self, streams: mx.array, next_ids: mx.array):
        """Streams [1, S, n, D] of the backbone and the true ids one ahead [1, S], S >= 1."""
        for depth in range(self.blocks):
            if not streams.shape[1]:  # the sequence is too short for this block
                return
            given = self.model.mtp_streams(streams, next_ids[:, -streams.shape[1] :], self.cache, depth)
            streams = _joined(self.last[depth], given[:, :-1])
            self.last[depth] = given[:, -1:]

    def draft(self, count: int) -> mx.array:
        """The ids [1, count] that are likely to follow all that was fed; count >= 1. Not computed yet."""
        unread, depth = self.last[0], 0
        drafts = self._after(unread, depth)
        fed = [0] * self.blocks
        for number in range(1, count):
            depth = min(number, self.blocks - 1)
            if number >= self.blocks:
                unread = unread[:, -1:]
            tokens = unread.shape[1]
            given = self.model.mtp_streams(unread, drafts[:, -tokens:], self.cache, depth)
            fed[depth] += tokens
            drafts = mx.concatenate([drafts, self._after(given, depth)], axis=1)
            unread = _joined(self.last[depth], given)
        for depth, tokens in enumerate(fed):
            self.cache[depth].trim(tokens)
        return drafts

    def _after(self, streams: mx.array, depth: int) -> mx.array:
        return self.rule.draft(self.model.mtp_head(streams[:, -1:], depth))


def _joined(before: mx.array | None, streams: mx.array) -> mx.array:
    return streams if before is None else mx.concatenate([before, streams], axis=1)


class TokenStream(Iterator[tuple[int, bool]]):
    """Pairs (token, from_draft): the tokens of plain greedy decoding or, with a temperature, as likely as in plain
    sampling.

    A token of ``eos_token_ids`` is given and ends the stream. ``past`` are the tokens given so far, ``logits`` [V]
    those that the last one was chosen from; ``drafted`` and ``accepted`` count the drafts.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int] | mx.array,
        *,
        max_tokens: int = 256,
        draft_tokens: int = 1,
        eos_token_ids: Collection[int] = (),
        prefill_step_size: int = 2048,
        cache: list[LayerCache] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        **sampling,
    ):
        """``draft_tokens``: drafts a verification, 1 to 15. ``prefill_step_size``: tokens of the prompt a call.

        ``cache``: of ``make_cache``, which may hold what comes before the prompt; drafts are made of the prompt alone.
        ``progress`` is told how many tokens of the prompt were fed, and how many it has.
        ``sampling``: temp, top_p, top_k, min_p and seed of ``sampling.rule_of``; greedy without them.
        Raises UsageError at once, before anything is computed.
        """
        if not getattr(model, "mtp", None):
            raise UsageError("The model has no MTP block to draft with: its checkpoint or its config counts none.")
        check_number("draft_tokens", draft_tokens, most=MOST_DRAFTS)
        check_number("max_tokens", max_tokens)
        check_number("prefill_step_size", prefill_step_size)
        prompt = _checked_ids(prompt, model.args.vocab_size)
        self.model, self.max_tokens, self.draft_tokens = model, max_tokens, draft_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self.prefill_step_size = prefill_step_size
        self.rule = rule_of(model.args.vocab_size, **sampling)
        self.cache = model.make_cache() if cache is None else cache
        self.drafter = Drafter(model, draft_tokens, self.rule)
        self.drafted = self.accepted = 0
        self.past: list[int] = []
        self.logits: mx.array | None = None
        self.progress, self._before = progress, self.cache[0].size() + prompt.shape[1]
        self._tokens = self._until_end(prompt)

    def __next__(self) -> tuple[int, bool]:
        return next(self._tokens)

    def told(self) -> str:
        """How many drafts stood, in words."""
        share = f" ({self.accepted / self.drafted:.0%})" if self.drafted else ""
        return f"Drafts: {self.accepted} of {self.drafted} accepted{share}"

    def settle(self):
        """End the stream; ``cache`` then holds the prompt and all tokens given, as mlx-lm leaves it."""
        self._tokens.close()
        if not self.past:
            return
        beyond = self.cache[0].size() - self._before - len(self.past)
        if beyond < 0:  # the last token is the model's own and was not fed
            self.model.streams(mx.array([self.past[-1:]], dtype=mx.int32), self.cache)
        for state in self.cache:
            state.trim(max(beyond, 0))

    def _until_end(self, prompt: mx.array) -> Iterator[tuple[int, bool]]:
        for token, from_draft in self._endless(prompt):
            self.accepted += from_draft
            self.past.append(token)
            yield token, from_draft
            if token in self.eos_token_ids or len(self.past) == self.max_tokens:
                return

    def _endless(self, prompt: mx.array) -> Iterator[tuple[int, bool]]:
        """Between rounds the caches hold all tokens but the last, which is the model's and not fed yet."""
        token = self._prefill(prompt)
        given = 1
        yield token, False
        while True:
            count = min(self.draft_tokens, self.max_tokens - given - 1)  # as many as can be needed, and one more
            ids = mx.array([[token]], dtype=mx.int32)
            if count > 0:
                ids = mx.concatenate([ids, self.drafter.draft(count)], axis=1)
                self.drafted += count
            streams = self.model.streams(ids, self.cache)
            logits = self.model.logits(streams)
            found = self.rule.verify(logits, ids[:, 1:])
            for state in self.cache:
                state.trim(ids.shape[1] - len(found))
            self.drafter.feed(streams[:, : len(found)], mx.array([found], dtype=mx.int32))
            for index, token in enumerate(found, start=1):
                self.logits = logits[0, index - 1]
                yield token, index < len(found)
            given += len(found)

    def _prefill(self, prompt: mx.array) -> int:
        """Feed the prompt [1, P]; the token after it."""
        length = prompt.shape[1]
        for start in range(0, length, self.prefill_step_size):
            end = min(start + self.prefill_step_size, length)
            streams = self.model.streams(prompt[:, start:end], self.cache)
            if end < length:
                following = prompt[:, start + 1 : end + 1]
            else:
                logits = self.model.logits(streams[:, -1:])
                self.logits = logits[0, 0]
                found = self.rule.verify(logits, prompt[:, :0])
                following = mx.concatenate([prompt[:, start + 1 :], mx.array([found], dtype=mx.int32)], axis=1)
            self.drafter.feed(streams, following)
            mx.eval([state.state for state in [*self.cache, *self.drafter.cache]], self.drafter.last)
            mx.clear_cache()
            self.progress(end, length)
        return found[0]


def check_number(name: str, value: int, most: int | None = None):
    """Raise UsageError unless the option is a whole number from 1 to ``most``."""
    if not isinstance(value, Integral) or value < 1 or (most is not None and value > most):
        allowed = "at least 1" if most is None else f"from 1 to {most}"
        raise UsageError(f"{name} is {value}; give a whole number {allowed}.")


def _checked_ids(prompt: Sequence[int] | mx.array, vocabulary: int) -> mx.array:
    """The prompt as [1, P]."""
    ids = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
    if not ids:
        raise UsageError("The prompt is empty; give at least one token.")
    for token in ids:
        if not isinstance(token, Integral):
            raise UsageError(f"The prompt holds {token!r}; give one sequence of token ids.")
        if not 0 <= token < vocabulary:
            raise UsageError(f"Token id {token} is outside the vocabulary of {vocabulary}.")
    return mx.array([[int(token) for token in ids]], dtype=mx.int32)


def generate(
    model: Model,
    tokenizer,
    prompt: str | Sequence[int] | mx.array,
    *,
    verbose: bool = False,
    eos_token_ids: Collection[int] | None = None,
    **options,
) -> str | list[int]:
    """What the model continues the prompt with: text, or a list of ids where ``tokenizer`` is None.

    The end token is left out. ``eos_token_ids`` is the tokenizer's where None is given. ``verbose`` prints the text as
    it comes, then speed, accepted drafts and the speed-up over plain decoding, measured on a few more tokens.
    ``options`` and UsageError are those of ``TokenStream``.
    """
    if tokenizer is not None:
        from mlx_lm.tokenizer_utils import TokenizerWrapper  # brings transformers, which only text needs

        tokenizer = tokenizer if isinstance(tokenizer, TokenizerWrapper) else TokenizerWrapper(tokenizer)
    if eos_token_ids is None:
        eos_token_ids = tokenizer.eos_token_ids if tokenizer else ()
    stream = TokenStream(model, _encoded(tokenizer, prompt), eos_token_ids=eos_token_ids, **options)
    detokenizer = tokenizer.detokenizer if tokenizer else None
    tokens, text = [], ""

    def say(part: str):
        nonlocal text
        text += part
        if verbose:
            print(part, end="", flush=True)

    started = time.perf_counter()
    first = None
    for token, _ in stream:
        first = first or time.perf_counter()
        if token in stream.eos_token_ids:
            break
        tokens.append(token)
        if detokenizer:
            detokenizer.add_token(token)
            say(detokenizer.last_segment)
    ended = time.perf_counter()
    if detokenizer:
        detokenizer.finalize()
        say(detokenizer.last_segment)
    if verbose:
        print(f"{'' if detokenizer else tokens}\n{'=' * 10}\nPrompt: {first - started:.3f} s")
        speed = max(len(tokens) - 1, 0) / (ended - first)
        print(f"Generation: {len(tokens)} tokens, {speed:.3f} tokens-per-sec")
        print(stream.told())
        if len(tokens) > 1:
            plain = _plain_speed(stream)
            print(f"Plainly: {COMPARED} more tokens, {plain:.3f} tokens-per-sec")
            print(f"Speed-up: {speed / plain:.2f}")
    return text if detokenizer else tokens


def _plain_speed(stream: TokenStream) -> float:
    """Tokens a second of mlx-lm's own loop, which goes on where the stream ended."""
    from mlx_lm.generate import generate_step  # brings transformers

    stream.settle()
    for state in stream.cache:
        state.trim(1)
    steps = generate_step(
        mx.array(stream.past[-1:]),
        stream.model,
        max_tokens=COMPARED + 1,
        sampler=stream.rule.sampler(),
        prompt_cache=stream.cache,
    )
    next(steps)  # as in a stream, the first token is not counted
    started = time.perf_counter()
    for _ in steps:
        pass
    return COMPARED / (time.perf_counter() - started)


def _encoded(tokenizer, prompt: str | Sequence[int] | mx.array):
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise UsageError("The prompt is text, but there is no tokenizer; give token ids.")
    # A chat template has put the first token there already.
    special = tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token)
    return tokenizer.encode(prompt, add_special_tokens=special)
