"""mlx-lm's server with drafts by MTP blocks: its answers are those of greedy decoding, its stored caches right.

Run: pytest tests/test_mtp_server.py
"""

import argparse
import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import mlx.core as mx
import mlx_lm
import pytest
from helpers import sentence, tiny
from mlx_lm import server as mlx_lm_server
from mlx_lm.generate import stream_generate
from mlx_lm.sample_utils import make_sampler
from test_serving import NEW, PROMPTS, Server, ids_of, talk, until_end, words, write_checkpoint

import dsv4_mlx
from dsv4_mlx import TokenStream, UsageError, mtp_server
from dsv4_mlx.mtp_server import Told
from dsv4_mlx.registration import MODULE

CONFIG = tiny((0, 4, 128, 4, 0), mtp=1, sliding_window=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("mtp") / "model", config=CONFIG)


@pytest.fixture(scope="module")
def loaded(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, MODULE, None)
        dsv4_mlx.register()
        yield mlx_lm.load(str(folder))


@pytest.fixture(scope="module")
def greedy(loaded):
    model, _ = loaded

    def tokens(prompt, new=NEW):
        ids = list(prompt)
        for _ in range(new):
            ids.append(model(mx.array([ids]))[0, -1].argmax().item())
        return until_end(ids[len(prompt) :])

    return tokens


# --- what it does in place of mlx-lm's stream_generate -------------------------------------------------------


def served(by, loaded, prompt, cache, count, **changed):
    """Responses as mlx-lm's server takes them: it leaves off where it has found a stop word."""
    model, tokenizer = loaded
    options = {
        "sampler": Told(make_sampler(0.0), {"temp": 0.0}),
        "max_tokens": NEW,
        "logits_processors": [],
        "prompt_cache": cache,
        "prefill_step_size": 16,
        "prompt_progress_callback": lambda done, total: None,
        "input_embeddings": None,
        "kv_bits": None,
    }
    found = []
    for response in by(model=model, tokenizer=tokenizer, prompt=prompt, **options | changed):
        found.append(response)
        if len(found) == count:
            break
    return found


def drafted(loaded, *arguments, **changed):
    return served(functools.partial(mtp_server._responses, stream_generate, 4), loaded, *arguments, **changed)


@pytest.mark.parametrize("count", [1, 2, 7, NEW])
def test_responses_and_caches_are_mlx_lms(loaded, count):
    """Two turns; the second goes on from the cache of the first."""
    model, _ = loaded
    caches = [model.make_cache() for _ in range(2)]

    def told(*now):
        told.now = now

    for turn in (PROMPTS[0][:40], PROMPTS[1][:9]):
        own = drafted(loaded, turn, caches[0], count, prompt_progress_callback=told)
        plain = served(stream_generate, loaded, turn, caches[1], count)
        for one, other in zip(own, plain, strict=True):
            assert (one.text, one.token, one.finish_reason) == (other.text, other.token, other.finish_reason)
            assert mx.allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert told.now == (len(turn), len(turn))
        assert len({state.size() for cache in caches for state in cache}) == 1


def test_a_cache_that_is_not_settled_is_seen(loaded, monkeypatch):
    monkeypatch.setattr(TokenStream, "settle", lambda stream: None)
    with pytest.raises(AssertionError):
        test_responses_and_caches_are_mlx_lms(loaded, 7)


@pytest.mark.parametrize(
    "changed", [{"logits_processors": [lambda ids, x: -x]}, {"sampler": lambda x: mx.argmin(x, -1)}]
)
def test_what_it_cannot_draft_for_is_left_to_mlx_lm(loaded, changed):
    model, _ = loaded
    own, plain = (
        by(PROMPTS[0][:9], model.make_cache(), 5)
        for by in (
            lambda *given: drafted(loaded, *given, **changed),
            lambda *given: served(stream_generate, loaded, *given, **changed),
        )
    )
    assert [one.token for one in own] == [one.token for one in plain]
    assert own[0].token != drafted(loaded, PROMPTS[0][:9], model.make_cache(), 1)[0].token


# --- arguments -----------------------------------------------------------------------------------------------


@pytest.fixture
def unchanged(monkeypatch):
    for name in ("stream_generate", "_make_sampler", "ModelProvider"):
        monkeypatch.setattr(mlx_lm_server, name, getattr(mlx_lm_server, name))


def test_samplers_tell_their_options(loaded, unchanged):
    assert mtp_server.prepare(["--mtp", "--port", "1"]) == ["--port", "1"]
    asked = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "xtc_probability": 0.0, "xtc_threshold": 0.1}
    made = [
        mlx_lm_server._make_sampler(SimpleNamespace(sampling=SimpleNamespace(**asked | other)), loaded[1])
        for other in ({}, {"xtc_probability": 0.5})
    ]
    assert made[0].options == {"temp": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1}
    assert made[0](mx.zeros((1, 48))).shape == (1,)
    assert not isinstance(made[1], Told)


def test_only_a_model_with_a_block_is_served_alone(tmp_path, folder, loaded, unchanged, caplog):
    mtp_server.prepare(["--mtp"])
    without = write_checkpoint(tmp_path / "model", config=tiny((0, 4)))
    arguments = {
        "model": None,
        "adapter_path": None,
        "draft_model": None,
        "trust_remote_code": False,
        "pipeline": False,
    }
    provider = mlx_lm_server.ModelProvider(
        argparse.Namespace(**arguments, chat_template="", use_default_chat_template=False)
    )
    provider.load(str(folder))
    assert not provider.is_batchable
    provider.load(str(without))
    assert provider.is_batchable
    assert "has no MTP block to draft with: it is served without drafts." in caplog.text
    said = f"{without} has no MTP block to draft with: its config counts none."
    assert sentence(UsageError, lambda: mtp_server.prepare(["--mtp", "--model", str(without)])) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mtp", "--draft-tokens", "16"], "draft_tokens is 16; give a whole number from 1 to 15."),
        (["--mtp", "--draft-model=d"], "Choose one of --mtp and --draft-model."),
    ],
)
def test_misuse(arguments, said):
    assert sentence(UsageError, lambda: mtp_server.prepare(arguments)) == said


# --- a server ------------------------------------------------------------------------------------------------


def test_server(folder, greedy):
    """Requests that overlap, turns that reuse the cache, prefixes of it, a stop word, and draws with a seed."""
    with Server(folder, "--mtp", "--draft-tokens", "3") as server:
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(talk, server, greedy, start) for start in (0, 1)]
            cached = [job.result() for job in jobs]
        assert all(second >= 40 for _, second in cached)
        assert talk(server, greedy, 0, turns=1)[0] >= 40
        first = [{"role": "user", "content": words(PROMPTS[2][:40])}]
        text, _ = server.chat(first)
        stop = f"w{ids_of(text)[4]}"
        cut, _ = server.chat([{"role": "user", "content": words(PROMPTS[2][:40])}], stop=[stop])
        assert ids_of(cut) == ids_of(text)[: ids_of(text).index(int(stop[1:]))]
        assert talk(server, greedy, 2)[1] >= 40
        drawn = [server.chat(first, temperature=1.0, seed=5)[0] for _ in range(2)]
        assert drawn[0] == drawn[1] != text
        server.process.terminate()
        said = server.process.stdout.read().decode()
    assert "tokens-per-sec. Drafts: " in said
    assert "Traceback" not in said
