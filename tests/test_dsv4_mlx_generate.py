"""Speculative decoding by MTP blocks: the tokens of greedy decoding without any cache, whatever the drafts are.

Run: pytest tests/test_dsv4_mlx_generate.py
"""

import re
import subprocess
import sys
from itertools import islice

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from helpers import sentence, tiny, token_ids
from test_serving import END, ids_of, words, write_checkpoint

import dsv4_mlx
from dsv4_mlx import TokenStream, UsageError, generate, token_wise
from dsv4_mlx.__main__ import generate_mtp
from dsv4_mlx.registration import MODULE
from parity.cases.strategies import checkpoint_tensors
from parity.judging.sides import MLXSide

NEW = 24
CONFIGS = {
    "one block": tiny((0, 4, 128, 0), mtp=1),
    "one block, ratio 4": tiny((4, 128, 4), mtp=1, sliding_window=6),
    "three blocks": tiny((0, 4, 128, 0, 0, 0), mtp=3),
}
PROMPT = token_ids(CONFIGS["one block"], 130, seed=3)[0].tolist()


class Decoding:
    """A model, and its greedy tokens by one call over all before each."""

    def __init__(self, config):
        self.config = config
        self.model = MLXSide(config, {}, checkpoint_tensors(config, 0, "float32"), "float32").model
        self.known = {}

    def greedy(self, prompt, new=NEW):
        """Fails where two logits are so close that rounding might decide: calls of other sizes round differently."""
        ids = list(prompt)
        for _ in range(new):
            if tuple(ids) not in self.known:
                logits = np.array(self.model(mx.array([ids]))[0, -1])
                least, most = np.sort(logits)[-2:]
                assert most - least > 1e-5
                self.known[tuple(ids)] = int(logits.argmax())
            ids.append(self.known[tuple(ids)])
        return ids[len(prompt) :]

    def stream(self, length, right=None, **options):
        """`right`: of the drafts, those at which positions to replace by the true tokens; the others become wrong."""
        stream = TokenStream(self.model, PROMPT[:length], **{"max_tokens": NEW, "prefill_step_size": 50} | options)
        if right is not None:
            own, true = stream.drafter.draft, PROMPT[:length] + self.greedy(PROMPT[:length])

            def draft(count):
                first = stream.drafter.cache[0].size() + 1
                assert own(count).shape == (1, count)
                found = [
                    true[i] if right(i) else (true[i] + 1) % self.config["vocab_size"]
                    for i in range(first, first + count)
                ]
                return mx.array([found], dtype=mx.int32)

            stream.drafter.draft = draft
        return stream


@pytest.fixture(scope="module", params=CONFIGS)
def decoding(request):
    return Decoding(CONFIGS[request.param])


@pytest.fixture(scope="module")
def one_block():
    return Decoding(CONFIGS["one block"])


@pytest.fixture(autouse=True)
def as_written(monkeypatch):
    """tests/test_dsv4_mlx_blocks.py compiles, for as long as a test here takes."""
    monkeypatch.setattr(token_wise, "REPEATED", 10_000)


def tokens(stream):
    return [token for token, _ in stream]


def half(position):
    return position % 7 in (1, 2, 4)


DRAFTS = {"own": None, "right": lambda position: True, "half right": half, "wrong": lambda position: False}


# --- tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draft_tokens", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 15])
@pytest.mark.parametrize("length", [1, pytest.param(9, marks=pytest.mark.slow), 125])
@pytest.mark.parametrize("drafts", DRAFTS)
def test_tokens_are_those_of_greedy_decoding(decoding, length, draft_tokens, drafts):
    """Rings wrap; blocks of 4 and, of the longest prompt, the one of 128 end among the new tokens."""
    stream = decoding.stream(length, DRAFTS[drafts], draft_tokens=draft_tokens)
    found = list(stream)
    assert [token for token, _ in found] == decoding.greedy(PROMPT[:length])
    assert stream.accepted == sum(from_draft for _, from_draft in found) <= stream.drafted
    if drafts == "right":
        rounds = -(-(NEW - 1) // (draft_tokens + 1))
        assert stream.accepted == stream.drafted == NEW - 1 - rounds
    elif drafts == "wrong":
        assert stream.accepted == 0
    elif drafts == "half right":
        assert 0 < stream.accepted < stream.drafted


@pytest.mark.parametrize("step", [1, 7, 2048])
def test_prompt_in_calls_of_any_size(one_block, step):
    stream = one_block.stream(125, half, draft_tokens=3, prefill_step_size=step)
    assert tokens(stream) == one_block.greedy(PROMPT[:125])


@pytest.mark.parametrize("draft_tokens", [1, 4, 15])
def test_without_trim_the_tokens_differ(one_block, draft_tokens):
    """What the tests above would see if rejected drafts stayed in the caches."""
    stream = one_block.stream(9, half, draft_tokens=draft_tokens)
    for state in stream.cache:
        state.trim = lambda n: 0
    assert tokens(stream) != one_block.greedy(PROMPT[:9])


# --- drafts ------------------------------------------------------------------------------------------------


def draft_without_cache(model, ids, count):
    """As `Drafter` describes it, on all true ids; an input of a block once it is there for every position."""
    blocks = len(model.mtp)
    inputs, seen = model.streams(mx.array([ids[:-1]])), list(ids)
    for number in range(count):
        depth = min(number, blocks - 1)
        outputs = model.mtp_streams(inputs, mx.array([seen[depth + 1 :]]), depth=depth)
        seen.append(model.mtp_head(outputs, depth)[0, -1].argmax().item())
        inputs = outputs if depth < blocks - 1 else mx.concatenate([inputs, outputs[:, -1:]], axis=1)
    return seen[len(ids) :]


def drafts_of(decoding, stream, length):
    """What the stream's drafter proposed each round, beside what it should have."""
    found = []
    replaced = stream.drafter.draft
    full = PROMPT[:length] + decoding.greedy(PROMPT[:length])

    def draft(count):
        own = type(stream.drafter).draft(stream.drafter, count)
        known = full[: stream.drafter.cache[0].size() + 1]
        found.append((own[0].tolist(), draft_without_cache(decoding.model, known, count)))
        return replaced(count)

    stream.drafter.draft = draft
    tokens(stream)
    return found


@pytest.mark.parametrize("length", [1, 2, pytest.param(9, marks=pytest.mark.slow), 125])
@pytest.mark.parametrize("draft_tokens", [1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_drafts_are_those_of_true_tokens_alone(decoding, length, draft_tokens):
    """The caches of MTP blocks hold what was accepted, computed from the backbone's streams."""
    stream = decoding.stream(length, half, draft_tokens=draft_tokens)
    found = drafts_of(decoding, stream, length)
    assert len(found) > 3
    for own, expected in found:
        assert own == expected


def test_caches_of_mtp_blocks_take_back_a_draft_and_no_more(one_block):
    """They keep no ids: what they hold was made of the backbone's streams."""
    model, ids = one_block.model, mx.array([PROMPT[:61]])
    streams, (cache,) = model.streams(ids), model.make_mtp_cache()
    model.mtp_streams(streams[:, :-1], ids[:, 1:], [cache])
    assert (cache.tokens, cache.trim(16)) == (None, 16)
    with pytest.raises(dsv4_mlx.UsageError, match="of a sequence of 44 it can take back 0 at most"):
        cache.trim(1)
    backbone = model.make_cache()
    with pytest.raises(dsv4_mlx.UsageError, match=r"made for another place; take all from make_mtp_cache\(\)\.$"):
        model.mtp_streams(streams[:, :-1], ids[:, 1:], backbone[:1])


def test_without_trim_the_drafts_differ(one_block):
    stream = one_block.stream(9, half, draft_tokens=5)
    stream.drafter.cache[0].trim = lambda n: 0
    full = PROMPT[:9] + one_block.greedy(PROMPT[:9])
    stream.drafter.draft = lambda count: mx.array([[0] * count], dtype=mx.int32)
    next(stream)
    found = [type(stream.drafter).draft(stream.drafter, 5)[0].tolist() for _ in range(2)]
    assert found[0] == draft_without_cache(one_block.model, full[:10], 5)
    assert found[1] != found[0]


def test_drafts_of_other_streams_differ(one_block):
    """Entries made from the drafts' own streams instead of the backbone's would be seen."""
    stream = one_block.stream(9, half, draft_tokens=5)
    fed = stream.drafter.feed
    stream.drafter.feed = lambda streams, ids: fed(mx.roll(streams, 1, axis=2), ids)
    assert any(own != expected for own, expected in drafts_of(one_block, stream, 9))


# --- ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("right", [None, DRAFTS["right"]], ids=["own", "right"])
def test_max_tokens_inside_a_draft(one_block, max_tokens, right):
    stream = one_block.stream(9, right, draft_tokens=4, max_tokens=max_tokens)
    assert tokens(stream) == one_block.greedy(PROMPT[:9])[:max_tokens]
    assert next(stream, None) is None


# The first eight tokens end a stream at every place in a draft of six, and in the first call after it.
@pytest.mark.parametrize("right", DRAFTS.values(), ids=DRAFTS)
@pytest.mark.parametrize("among", [8, pytest.param(NEW, marks=pytest.mark.slow)])
def test_end_token_inside_a_draft(one_block, right, among):
    true = one_block.greedy(PROMPT[:9])
    for end in sorted({*true[:among]}):
        stream = one_block.stream(9, right, draft_tokens=6, eos_token_ids=[end])
        assert tokens(stream) == true[: true.index(end) + 1]
    unused = next(i for i in range(48) if i not in true)
    assert tokens(one_block.stream(9, right, draft_tokens=6, eos_token_ids={unused})) == true


def test_ids_in_ids_out(one_block):
    true = one_block.greedy(PROMPT[:9])
    assert generate(one_block.model, None, PROMPT[:9], max_tokens=NEW, draft_tokens=2) == true
    assert generate(one_block.model, None, mx.array(PROMPT[:9]), max_tokens=5) == true[:5]
    found = generate(one_block.model, None, np.array(PROMPT[:9]), max_tokens=NEW, eos_token_ids=[true[6]])
    assert found == true[: true.index(true[6])]


@pytest.mark.parametrize("right", [None, DRAFTS["right"], half], ids=["own", "right", "half right"])
def test_a_settled_cache_holds_the_tokens_given(one_block, right):
    """Wherever a stream is left: all drafts fed, some rejected, the last token not fed."""
    true = PROMPT[:9] + one_block.greedy(PROMPT[:9])
    for given in range(8):
        stream = one_block.stream(9, right, draft_tokens=4)
        assert len([*islice(stream, given)]) == given
        stream.settle()
        assert next(stream, None) is None
        if given:
            assert stream.cache[0].size() == 9 + given
            logits = one_block.model(mx.array([[true[9 + given]]]), stream.cache)
            assert logits[0, -1].argmax().item() == true[10 + given]


# --- text --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = tiny((0, 4, 128, 4, 0), mtp=1, sliding_window=6)
    return write_checkpoint(tmp_path_factory.mktemp("generate") / "model", config=config)


def test_text_is_mlx_lms(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    dsv4_mlx.register()
    model, tokenizer = mlx_lm.load(str(folder))
    prompt = words(i for i in PROMPT[:20] if i != END)
    text = generate(model, tokenizer, prompt, max_tokens=NEW, draft_tokens=3)
    assert text
    assert text == mlx_lm.generate(model, tokenizer, prompt, max_tokens=NEW)
    assert text == generate(model, tokenizer._tokenizer, prompt, max_tokens=NEW, draft_tokens=3)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dsv4_mlx", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_command(folder):
    asked = ["--model", str(folder), "--prompt", "w7 w12 w30", "--max-tokens", "12"]
    ended = command("generate", "--mtp", *asked, "--draft-tokens", "3")
    assert ended.returncode == 0, ended.stderr
    text, _, figures = ended.stdout.partition("==========")
    plain = command("generate", *asked, "--verbose", "F").stdout
    assert ids_of(text) == ids_of(plain) != []
    rate = r"([\d.]+) tokens-per-sec\n"
    said = rf"Generation: \d+ tokens, {rate}Drafts: \d+ of \d+ accepted \(\d+%\)\n"
    said += rf"Plainly: 16 more tokens, {rate}Speed-up: (.+)"
    speed, plainly, gain = map(float, re.search(said, figures).groups())
    assert gain == pytest.approx(speed / plainly, abs=0.006)


def test_options_of_the_command(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, None)
    dsv4_mlx.register()
    asked = ["--mtp", "--model", str(folder), "--prompt", "w7 w12 w30", "--max-tokens", "12", "--verbose", "F"]

    def said(*arguments):
        generate_mtp([*asked, *arguments])
        return ids_of(capsys.readouterr().out)

    sampled = ["--temp", "1", "--top-p", "0.95", "--top-k", "20", "--min-p", "0.01", "--draft-tokens", "2"]
    greedy = said()
    assert said(*sampled, "--seed", "3") == said(*sampled, "--seed", "3") != greedy
    assert said(*sampled, "--top-k", "1") == greedy
    for wrong, told in {
        ("--draft-tokens", "16"): "draft_tokens is 16; give a whole number from 1 to 15.",
        ("--temp", "1", "--top-k", "48"): "top_k is 48; give a whole number from 0 to 47.",
        ("--draft-model", "d"): "unrecognized arguments: --draft-model d",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            said(*wrong)
        assert capsys.readouterr().err.endswith(f"python -m dsv4_mlx generate --mtp: error: {told}\n")


# --- misuse ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        ([], {}, "The prompt is empty; give at least one token."),
        ([3, 48], {}, "Token id 48 is outside the vocabulary of 48."),
        ([-1], {}, "Token id -1 is outside the vocabulary of 48."),
        ([[1, 2]], {}, "The prompt holds [1, 2]; give one sequence of token ids."),
        ("w1", {}, "The prompt is text, but there is no tokenizer; give token ids."),
        ([1], {"draft_tokens": 0}, "draft_tokens is 0; give a whole number from 1 to 15."),
        ([1], {"draft_tokens": 16}, "draft_tokens is 16; give a whole number from 1 to 15."),
        ([1], {"max_tokens": 0}, "max_tokens is 0; give a whole number at least 1."),
        ([1], {"max_tokens": 2.5}, "max_tokens is 2.5; give a whole number at least 1."),
        ([1], {"prefill_step_size": 0}, "prefill_step_size is 0; give a whole number at least 1."),
    ],
)
def test_misuse(one_block, prompt, options, said):
    assert sentence(UsageError, lambda: generate(one_block.model, None, prompt, **options)) == said
    if prompt != "w1":  # at once, not with the first token
        assert sentence(UsageError, lambda: TokenStream(one_block.model, prompt, **options)) == said


def test_a_model_without_mtp_block():
    model = Decoding(tiny((0, 4))).model
    said = "The model has no MTP block to draft with: its checkpoint or its config counts none."
    assert sentence(UsageError, lambda: generate(model, None, [1])) == said
