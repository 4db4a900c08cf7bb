"""mlx-lm unchanged around the model: whatever it serves is what greedy decoding without any cache gives.

Run: pytest tests/test_serving.py
"""

import copy
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import mlx_lm
import pytest
from helpers import tiny, token_ids, write_folder
from mlx_lm.generate import BatchGenerator, batch_generate, generate_step, speculative_generate_step, stream_generate
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

import dsv4_mlx
from dsv4_mlx.__main__ import without_store
from dsv4_mlx.registration import MODULE
from parity.cases.strategies import checkpoint_tensors
from parity.jobs.fixture import write_tokenizer

# The ratios that transformers knows too: it reads the config for the sake of the tokenizer.
CONFIG = tiny((0, 4, 128, 4), sliding_window=6)
NEW = 20
END = 1
PROMPTS = [[i if i != END else 5 for i in row.tolist()] for row in token_ids(CONFIG, 200, batch=8, seed=2)]
SLOW_DRAFTS = [pytest.param(9, 16, marks=pytest.mark.slow), pytest.param(130, 16, marks=pytest.mark.slow)]
LENGTHS = [9, 40, 3, 1, 127, 26, 17, 130]


def words(ids) -> str:
    return " ".join(f"w{i}" for i in ids)


def write_checkpoint(folder, seed=0, config=CONFIG):
    """A checkpoint as published, with a tokenizer of one word a token and a chat template."""
    write_folder(folder, config, checkpoint_tensors(config, seed, "float32"))
    write_tokenizer(folder, config["vocab_size"])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("serving") / "model")


@pytest.fixture
def registered(monkeypatch):
    """As `python -m dsv4_mlx` does, for one test."""
    monkeypatch.setitem(sys.modules, MODULE, None)
    dsv4_mlx.register()


@pytest.fixture(scope="module")
def loaded(folder):
    before = sys.modules.get(MODULE)
    dsv4_mlx.register()
    yield mlx_lm.load(str(folder))
    sys.modules.pop(MODULE) if before is None else sys.modules.update({MODULE: before})


@pytest.fixture(scope="module")
def greedy(loaded):
    """greedy(prompt, new) -> tokens, each by one call over all before it; stops as mlx-lm does."""
    model, _ = loaded
    known = {}

    def tokens(prompt, new=NEW):
        ids = list(prompt)
        for _ in range(new):
            if tuple(ids) not in known:
                known[tuple(ids)] = model(mx.array([ids]))[0, -1].argmax().item()
            ids.append(known[tuple(ids)])
        found = ids[len(prompt) :]
        return until_end(found)

    return tokens


def until_end(tokens):
    return tokens[: tokens.index(END)] if END in tokens else tokens


# --- one sequence ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
def test_generate(loaded, greedy, length):
    model, tokenizer = loaded
    prompt = PROMPTS[0][:length]
    text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=NEW, prefill_step_size=50)
    assert text.split() == words(greedy(prompt)).split()


def test_stream_generate(loaded, greedy):
    model, tokenizer = loaded
    found = [response.token for response in stream_generate(model, tokenizer, PROMPTS[1][:40], max_tokens=NEW)]
    assert until_end(found) == greedy(PROMPTS[1][:40])


@pytest.mark.parametrize("draft_seed", [0, 1], ids=["own draft", "other draft"])
@pytest.mark.parametrize(("length", "drafted"), [(40, 1), (40, 3), *SLOW_DRAFTS])
def test_speculative_generation(loaded, greedy, tmp_path, draft_seed, length, drafted):
    """The own model's drafts are all taken, another's nearly never."""
    model, _ = loaded
    draft, _ = mlx_lm.load(str(write_checkpoint(tmp_path / "draft", draft_seed)))
    prompt = mx.array(PROMPTS[2][:length])
    steps = [*speculative_generate_step(prompt, model, draft, num_draft_tokens=drafted, max_tokens=NEW)]
    assert until_end([token for token, _, _ in steps]) == greedy(PROMPTS[2][:length])
    taken = sum(from_draft for _, _, from_draft in steps)
    assert taken >= NEW // 2 if draft_seed == 0 else taken < NEW // 2


def test_speculation_goes_on_with_a_cache(loaded, greedy, tmp_path):
    """A second turn on the cache of a first one, which is far longer than what can be rewound."""
    model, _ = loaded
    draft, _ = mlx_lm.load(str(write_checkpoint(tmp_path / "draft", 1)))
    cache, ids = make_prompt_cache(model) + make_prompt_cache(draft), []
    for turn in (PROMPTS[2][:60], PROMPTS[3][:33]):
        steps = speculative_generate_step(mx.array(turn), model, draft, max_tokens=NEW, prompt_cache=cache)
        found = [token for token, _, _ in steps]
        ids += turn
        assert until_end(found) == greedy(ids)
        held = cache[0].size() - len(ids)  # mlx-lm leaves out of the cache what it did not feed
        ids += found[:held]


def test_speculation_on_what_a_batch_gave(loaded, greedy, tmp_path):
    """mlx-lm refuses it once something of it was overwritten: its store must hear no more. A copy is as any other."""
    model, tokenizer = loaded
    draft, _ = mlx_lm.load(str(write_checkpoint(tmp_path / "draft", 1)))
    prompts, turn = [PROMPTS[2][:60], PROMPTS[3][:9]], PROMPTS[4][:33]
    given = batch_generate(model, tokenizer, prompts, max_tokens=1, return_prompt_caches=True).caches[0]
    held = given[0].size()

    def speculated(cache):
        cache = [*cache, *make_prompt_cache(draft)]
        draft(mx.array([prompts[0]]), cache=cache[len(given) :])
        steps = speculative_generate_step(mx.array(turn), model, draft, max_tokens=NEW, prompt_cache=cache)
        return until_end([token for token, _, _ in steps])

    with pytest.raises(ValueError, match=r"^Speculative decoding requires a trimmable prompt cache \(got \{'Extr"):
        speculated(given)
    past = (prompts[0] + greedy(prompts[0], 1))[:held]
    assert len(past) == held
    assert speculated(copy.deepcopy(given)) == greedy(past + turn)


@pytest.mark.parametrize("length", [9, 40, 130])
def test_prompt_cache_on_disk(loaded, greedy, tmp_path, length):
    model, _ = loaded
    prompt, cache = PROMPTS[4][:length], make_prompt_cache(model)
    model(mx.array([prompt[:-1]]), cache=cache)
    save_prompt_cache(str(tmp_path / "prompt.safetensors"), cache, {"model": "tiny"})
    restored, told = load_prompt_cache(str(tmp_path / "prompt.safetensors"), return_metadata=True)
    assert told == {"model": "tiny"}
    steps = generate_step(mx.array(prompt[-1:]), model, max_tokens=NEW, prompt_cache=restored)
    assert until_end([int(token) for token, _ in steps]) == greedy(prompt)


# --- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("step", [7, pytest.param(2048, marks=pytest.mark.slow)])
def test_batch_generate(loaded, greedy, batch, step):
    model, tokenizer = loaded
    prompts = [PROMPTS[i][:n] for i, n in enumerate(LENGTHS[:batch])]
    given = {"max_tokens": NEW, "prefill_step_size": step, "return_prompt_caches": True, "return_token_ids": True}
    first = batch_generate(model, tokenizer, prompts, **given)
    assert [until_end(ids) for ids in first.token_ids] == [greedy(prompt) for prompt in prompts]
    # a second turn, each from its own cache
    turns = [PROMPTS[i][100 : 100 + n] for i, n in enumerate(LENGTHS[:batch][::-1])]
    seen = [cache[0].size() for cache in first.caches]
    history = [(p + ids + [END])[:n] for p, ids, n in zip(prompts, first.token_ids, seen, strict=True)]
    second = batch_generate(model, tokenizer, turns, prompt_caches=first.caches, **given)
    for ids, past, turn in zip(second.token_ids, history, turns, strict=True):
        assert until_end(ids) == greedy(past + turn)


def test_sequences_come_and_go(loaded, greedy):
    """Continuous batching: requests arrive while others decode, and one is withdrawn."""
    model, _ = loaded
    generator = BatchGenerator(model, max_tokens=NEW, prefill_step_size=16, prefill_batch_size=2)
    found, prompts = {}, {}

    def insert(i):
        (uid,) = generator.insert([PROMPTS[i][: LENGTHS[i]]])
        prompts[uid], found[uid] = PROMPTS[i][: LENGTHS[i]], []
        return uid

    late, withdrawn = list(range(2, 8)), insert(1)
    insert(0)
    while late or any(len(tokens) < NEW for uid, tokens in found.items() if uid != withdrawn):
        _, responses = generator.next()
        for response in responses:
            found[response.uid].append(response.token)
        if late and len(found[withdrawn]) % 2 == 0:
            insert(late.pop(0))
        if len(found[withdrawn]) == 5:
            caches = generator.remove([withdrawn], return_prompt_caches=True)
            assert caches[withdrawn][0][0].size() >= LENGTHS[1]
            found[withdrawn].append(None)
    generator.close()
    for uid, tokens in found.items():
        tokens = [token for token in tokens if token is not None]
        expected = greedy(prompts[uid])
        assert tokens[: len(expected)] == expected[: len(tokens)]


# --- commands ----------------------------------------------------------------------------------------------

CHAT = "w2 w3 {} w4"


def command(*arguments, **env):
    ended = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=os.environ | env, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def ids_of(text):
    return [int(i) for i in re.findall(r"w(\d+)", text)]


def test_generate_command(folder, greedy):
    prompt = words(PROMPTS[5][:12])
    out = command(
        "dsv4_mlx", "generate", "--model", str(folder), "--prompt", prompt, "--max-tokens", "8", "--verbose", "F"
    )
    assert ids_of(out) == greedy(ids_of(CHAT.format(prompt)), 8)


def test_a_folder_that_names_its_model_file(folder, greedy, tmp_path):
    """The way that mlx-lm itself offers: two lines in the folder, and trust."""
    config = CONFIG | {"model_file": "deepseek_v4.py"}
    write_checkpoint(tmp_path / "model", config=config)
    (tmp_path / "model" / "deepseek_v4.py").write_text("from dsv4_mlx import Model, ModelArgs\n")
    model, _ = mlx_lm.load(str(tmp_path / "model"), trust_remote_code=True)
    ids = mx.array([PROMPTS[0]])
    own = dsv4_mlx.load(folder, mx.float32)
    assert mx.array_equal(model(ids), own(ids))


def test_importing_the_package_registers_nothing():
    said = command("timeit", "-n1", "-r1", f"import sys, dsv4_mlx; assert {MODULE!r} not in sys.modules")
    assert "loop" in said


class Server:
    """A running mlx_lm.server, asked as its users ask."""

    def __init__(self, folder, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        asked = ["--model", str(folder), "--port", str(self.port), "--temp", "0", *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dsv4_mlx", "server", *asked], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def __enter__(self):
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return self
            except urllib.error.URLError:
                assert self.process.poll() is None, self.process.stdout.read().decode()
                time.sleep(0.1)
        raise TimeoutError

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def chat(self, messages, **options):
        body = {"messages": messages, "max_tokens": 12, "temperature": 0} | options
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            told = json.load(answer)
        return told["choices"][0]["message"]["content"], told["usage"]["prompt_tokens_details"]["cached_tokens"]


def rendered(messages):
    """The chat template of `write_checkpoint`."""
    return [2, *(i for m in messages for i in [3 if m["role"] == "user" else 4, *ids_of(m["content"])]), 4]


def talk(server, greedy, start, turns=2, **options):
    """A conversation; how many tokens of each prompt the server found in its cache."""
    messages, cached = [], []
    for turn in range(turns):
        messages.append({"role": "user", "content": words(PROMPTS[start][40 * turn : 40 * turn + 40])})
        text, found = server.chat(messages, **options)
        assert ids_of(text) == greedy(rendered(messages), 12)
        messages.append({"role": "assistant", "content": text})
        cached.append(found)
    return cached


def test_server(folder, greedy):
    """Requests that overlap, turns that reuse the cache, and others that share a prefix of it."""
    with Server(folder) as server:
        with ThreadPoolExecutor(3) as pool:
            jobs = [pool.submit(talk, server, greedy, start) for start in (0, 1, 2)]
            cached = [job.result() for job in jobs]
        assert all(second >= 40 for _, second in cached)
        talk(server, greedy, 3, seed=1)  # served alone: the live cache is stored
        again = rendered([{"role": "user", "content": words(PROMPTS[3][:40])}])
        assert talk(server, greedy, 3, turns=1, seed=1) == [len(again) - 1]  # its first turn alone is in it no more
        talk(server, greedy, 4)
        talk(server, greedy, 5, turns=1)


def test_server_with_a_draft_model(folder, greedy, tmp_path):
    """mlx-lm 0.32 stores such a cache under one token more than it holds, for any model: our command stores none."""
    draft = write_checkpoint(tmp_path / "draft", 1)
    with Server(folder, "--draft-model", str(draft), "--num-draft-tokens", "3") as server:
        for start in (0, 1, 2):
            assert talk(server, greedy, start) == [0, 0]


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["server", "--draft-model", "d"], True),
        (["server", "--draft-model=d", "--port", "1"], True),
        (["server", "--draft-model", "d", "--prompt-cache-size", "4"], False),
        (["server", "--draft-model", "d", "--prompt-cache-size=4"], False),
        (["server", "--model", "m"], False),
        (["generate", "--draft-model", "d"], False),
        ([], False),
    ],
)
def test_only_a_server_that_drafts_stores_no_prompts(given, added, capsys):
    assert without_store(given) == given + ["--prompt-cache-size", "0"] * added
    assert ("no prompts are stored" in capsys.readouterr().err) == added


def test_kv_bits_are_refused(folder):
    model = dsv4_mlx.load(folder, mx.float32)
    with pytest.raises(dsv4_mlx.UsageError, match=r"^The cache is not quantised to 4 bits: leave kv_bits out; "):
        list(generate_step(mx.array([1, 2, 3]), model, max_tokens=3, kv_bits=4, quantized_kv_start=0))
