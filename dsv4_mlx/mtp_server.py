"""mlx-lm's server with drafts by the model's MTP block: ``python -m dsv4_mlx server --mtp``."""

import argparse
import functools
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm import server
from mlx_lm.generate import GenerationResponse

from .errors import UsageError
from .generate import MOST_DRAFTS, TokenStream, check_number
from .safetensors_folder import args_of, read_config
from .sampling import Sampler


@dataclass(frozen=True)
class Told:
    """mlx-lm's sampler, and the options that ``TokenStream`` needs instead."""

    plain: Sampler
    options: dict[str, float]

    def __call__(self, logprobs: mx.array) -> mx.array:
        return self.plain(logprobs)


class Alone(server.ModelProvider):
    """Has every request served by itself, where the model has an MTP block: mlx-lm batches others."""

    def _load(self, *given):
        super()._load(*given)
        if getattr(self.model, "mtp", None):
            self.is_batchable = False
        else:
            logging.warning(f"{given[0]} has no MTP block to draft with: it is served without drafts.")


def prepare(arguments: list[str]) -> list[str]:
    """What of the arguments of `server` is mlx-lm's; where --mtp is among them, its server drafts from now on.

    Raises UsageError.
    """
    parser = argparse.ArgumentParser("python -m dsv4_mlx server --mtp", add_help=False, allow_abbrev=False)
    parser.add_argument("--mtp", action="store_true")
    parser.add_argument("--draft-tokens", type=int, default=1)
    parser.add_argument("--model")
    parser.add_argument("--draft-model")
    given, rest = parser.parse_known_args(arguments)
    if not given.mtp:
        return arguments
    check_number("draft_tokens", given.draft_tokens, most=MOST_DRAFTS)
    if given.draft_model:
        raise UsageError("Choose one of --mtp and --draft-model.")
    folder = Path(given.model or "")
    if given.model and folder.is_dir() and not args_of(folder, read_config(folder)).num_nextn_predict_layers:
        raise UsageError(f"{folder} has no MTP block to draft with: its config counts none.")
    _install(given.draft_tokens)
    return rest if given.model is None else [*rest, "--model", given.model]


def _install(draft_tokens: int):
    """Replace the three names by which mlx-lm's server reaches what it serves a request alone with."""
    server.stream_generate = functools.partial(_responses, server.stream_generate, draft_tokens)
    server._make_sampler = functools.partial(_told, server._make_sampler)
    server.ModelProvider = Alone


def _told(plain, args: server.GenerationArguments, tokenizer) -> Sampler:
    asked = args.sampling
    if asked.xtc_probability:  # its draws are mlx-lm's own
        return plain(args, tokenizer)
    options = {"temp": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k, "min_p": asked.min_p}
    return Told(plain(args, tokenizer), options)


def _responses(plain, draft_tokens: int, model, tokenizer, prompt, **given) -> Iterator[GenerationResponse]:
    """As ``stream_generate``, and as there ``prompt_cache`` holds the prompt and all tokens given at the end.

    The cache may hold what came before the prompt: the drafts, not the tokens, are then made of the prompt alone.
    What changes the logits on the way (penalties, biases, XTC) is left to mlx-lm, without drafts.
    """
    sampler = given["sampler"]
    drafts = getattr(model, "mtp", None) and isinstance(sampler, Told) and given.get("kv_bits") is None
    if not drafts or given["logits_processors"] or given.get("input_embeddings") is not None:
        yield from plain(model=model, tokenizer=tokenizer, prompt=prompt, **given)
        return
    stream = TokenStream(
        model,
        prompt,
        max_tokens=given["max_tokens"],
        draft_tokens=draft_tokens,
        eos_token_ids=tokenizer.eos_token_ids,
        prefill_step_size=given["prefill_step_size"],
        cache=given["prompt_cache"],
        progress=given["prompt_progress_callback"],
        **sampler.options,
    )
    detokenizer, started = tokenizer.detokenizer, time.perf_counter()
    prompt_tps = 0.0
    try:
        for count, (token, from_draft) in enumerate(stream, start=1):
            if count == 1:
                prompt_tps = len(prompt) / (time.perf_counter() - started)
                started = time.perf_counter()
            ended = "stop" if token in stream.eos_token_ids else "length" if count == stream.max_tokens else None
            if ended != "stop":
                detokenizer.add_token(token)
            if ended:
                detokenizer.finalize()
            yield GenerationResponse(
                text=detokenizer.last_segment,
                token=token,
                logprobs=stream.logits - mx.logsumexp(stream.logits),
                from_draft=from_draft,
                prompt_tokens=len(prompt),
                prompt_tps=prompt_tps,
                generation_tokens=count,
                generation_tps=count / (time.perf_counter() - started),
                peak_memory=mx.get_peak_memory() / 1e9,
                finish_reason=ended,
            )
    finally:  # also where the server has found a stop word
        stream.settle()
        speed = (len(stream.past) - 1) / (time.perf_counter() - started)
        logging.info(f"{len(stream.past)} tokens, {speed:.3f} tokens-per-sec. {stream.told()}")
