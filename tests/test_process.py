"""Candidates in their own process: whatever one does there is one sentence, and the harness survives.

Run: pytest tests/test_process.py
"""

import os
import shutil
import signal
import threading
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from helpers import tiny, token_ids, write_folder

import dsv4_mlx
from parity.candidates import process, surroundings
from parity.candidates.adapters import resolve
from parity.candidates.containment import landlock_version
from parity.candidates.process import Process
from parity.cases.strategies import checkpoint_tensors

CANDIDATES = Path(__file__).parent / "candidates"
CONFIG = tiny((0, 4), mtp=0)
IDS = token_ids(CONFIG, 9, batch=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("checkpoint"), CONFIG, checkpoint_tensors(CONFIG, 0, "float32"))


@pytest.fixture(scope="module")
def expected(folder):
    model = dsv4_mlx.load(folder, mx.float32)
    return np.array(model(mx.array(IDS.numpy())))


@pytest.fixture
def started(tmp_path):
    """Starts a candidate of tests/candidates; at the end nothing of it may be left running."""
    opened = []

    def start(name, timeout=60.0, memory=4.0):
        opened.append(Process(resolve(str(CANDIDATES / f"{name}.py")), tmp_path, timeout, memory))
        return opened[-1].__enter__()

    yield start
    for one in opened:
        pid = one.child.pid if one.child else None
        one.__exit__()
        if pid:
            with pytest.raises(ProcessLookupError):
                os.killpg(pid, 0)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """One process for the tests in which it does not end."""
    scratch = tmp_path_factory.mktemp("unchanged")
    with Process(resolve(str(CANDIDATES / "unchanged.py")), scratch, 60.0, 4.0) as candidate:
        child = candidate.child
        yield candidate
        assert candidate.child is child


def one_shot(candidate):
    return candidate.run("one shot", IDS, [9], cached=False)


def said(error, call) -> str:
    """The one sentence of a candidate's problem."""
    with pytest.raises(process.CandidateProblem) as caught:
        call()
    sentence = str(caught.value)
    assert type(caught.value) is error, sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_the_schedule_is_followed_and_the_logits_are_the_models_own(unchanged, folder, expected):
    candidate = unchanged
    candidate.load(folder)
    assert np.array_equal(one_shot(candidate), expected)
    assert candidate.dtype == "float32"
    model = dsv4_mlx.load(folder, mx.float32)
    cache, ids = model.make_cache(), mx.array(IDS.numpy())
    pieces = [np.array(model(ids[:, start:stop], cache)) for start, stop in ((0, 5), (5, 6), (6, 9))]
    got = candidate.run("chunks", IDS, [5, 1, 3], cached=True)
    assert np.array_equal(got, np.concatenate(pieces, axis=1))
    assert np.array_equal(candidate.run("chunks", IDS, [5, 1, 3], cached=True), got)  # each run has a fresh cache


# name -> the problem, and what its sentence says
ENDINGS = {
    "calls_sys_exit": (process.Died, "The candidate called sys.exit(0) in the schedule 'one shot'"),
    "calls_os_exit": (process.Died, "ended its process with os._exit(3) or the like in the schedule 'one shot'."),
    "segfaults": (process.Died, "The candidate segfaulted (signal SIGSEGV) in the schedule 'one shot'."),
    "allocates_at_once": (process.AteMemory, "took more than the limit of 4 GiB of memory"),
    "raises": (
        process.Raised,
        "raised ValueError in the schedule 'one shot' (raises.py:9): the mask has the wrong shape.",
    ),
    "returns_nothing": (process.Raised, "the model returned NoneType instead of logits."),
    "answers_garbage": (process.Died, "answered nothing that can be read in the schedule 'one shot'."),
    "returns_too_much": (process.Died, "answered nothing that can be read in the schedule 'one shot'."),
    "writes_outside": (process.WroteOutside, "tried to write to "),
    "uses_network": (process.WroteOutside, "tried to use the network"),
    "starts_program": (process.WroteOutside, "tried to start another program (sh)"),
    "kills_parent": (process.WroteOutside, "tried to signal another process"),
    "needs_cache": (process.NotOffered, "does not run without a cache."),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_what_a_candidate_does_is_one_sentence(started, folder, name):
    error, words = ENDINGS[name]
    candidate = started(name)
    candidate.load(folder)
    assert words in said(error, lambda: one_shot(candidate))
    assert words in said(error, lambda: one_shot(candidate))  # the next request finds a process again
    assert not (CANDIDATES / "written.txt").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("loops", "computed for longer than the limit of 1 s"), ("sleeps", "gave no answer for 4 s")]
)
def test_a_candidate_that_hangs_is_ended(started, folder, name, words):
    candidate = started(name)
    candidate.load(folder)
    candidate.timeout = 1.0
    child = candidate.child.pid
    assert words in said(process.Hung, lambda: one_shot(candidate))
    with pytest.raises(ProcessLookupError):
        os.killpg(child, 0)


def test_time_in_which_a_candidate_may_not_run_is_not_its_own(started, folder, expected, monkeypatch):
    """As on a busy machine: the process is kept from running for longer than its limit."""
    monkeypatch.setattr(process, "WAITING", 1000)
    candidate = started("unchanged")
    candidate.load(folder)
    candidate.timeout = 1.0
    os.kill(candidate.child.pid, signal.SIGSTOP)
    threading.Timer(2.0, os.kill, (candidate.child.pid, signal.SIGCONT)).start()
    assert np.array_equal(one_shot(candidate), expected)


def test_a_candidate_that_allocates_without_end_is_ended_near_the_limit(started, folder):
    candidate = started("allocates", memory=1.0)
    candidate.load(folder)
    assert "more than the limit of 1 GiB" in said(process.AteMemory, lambda: one_shot(candidate))


@pytest.mark.skipif(landlock_version() < 1, reason="the kernel has no Landlock")
def test_native_code_cannot_write_outside(started, folder, expected):
    candidate = started("writes_outside_in_c")
    candidate.load(folder)
    assert np.array_equal(one_shot(candidate), expected)
    assert not (CANDIDATES / "written.npy").exists()


def test_what_a_candidate_prints_goes_to_the_log(started, folder, expected, capfd):
    candidate = started("prints")
    candidate.load(folder)
    assert np.array_equal(one_shot(candidate), expected)
    assert capfd.readouterr() == ("", "")
    assert b"\x00\xff{garbage" in (candidate.home / "candidate.log").read_bytes()


# What is wrong with an array is for the judge to say: it comes as it is.
def test_wrong_arrays_are_handed_over(started, folder, expected):
    for name, shape in {"returns_last_only": (2, 1, 48), "returns_wrong_shape": (2, 9)}.items():
        candidate = started(name)
        candidate.load(folder)
        assert one_shot(candidate).shape == shape
    candidate = started("returns_nan")
    candidate.load(folder)
    assert np.isnan(one_shot(candidate)).all()
    candidate = started("returns_integers")
    candidate.load(folder)
    assert np.array_equal(one_shot(candidate), np.trunc(expected))
    assert candidate.dtype == "int32"
    candidate = started("returns_random")
    candidate.load(folder)
    assert not np.array_equal(one_shot(candidate), one_shot(candidate))


@pytest.mark.parametrize("name", ["returns_output_object", "returns_tuple"])
def test_other_ways_to_call_and_to_answer_are_accepted(started, folder, expected, name):
    candidate = started(name)
    candidate.load(folder)
    assert np.array_equal(one_shot(candidate), expected)
    cached = candidate.run("chunks", IDS, [8, 1], cached=True)
    assert np.allclose(cached, expected, atol=np.abs(expected).max() * 1e-5)


def test_missing_imports_are_listed_all_at_once(started):
    with pytest.raises(process.MissingImports) as caught:
        started("lacks_imports")
    assert caught.value.names == ["no_other_library", "no_such_library"]
    assert str(caught.value) == "The candidate imports what is not installed: no_other_library, no_such_library."


def test_problems_of_the_import(started):
    assert "os._exit(0) or the like while it was imported." in said(process.Died, lambda: started("exits_on_import"))
    assert "has no Model with a ModelArgs" in said(process.Raised, lambda: started("no_model"))


def test_a_checkpoint_that_does_not_fit_is_the_candidates_own_error(unchanged, tmp_path):
    tensors = checkpoint_tensors(CONFIG, 0, "float32")
    short = {name: tensor for name, tensor in tensors.items() if name != "norm.weight"}
    wrong = write_folder(tmp_path / "wrong", CONFIG, short)
    sentence = said(process.Raised, lambda: unchanged.load(wrong))
    assert "raised UsageError while loading the checkpoint" in sentence
    assert "norm.weight" in sentence


def test_a_process_that_dies_between_requests_is_started_again(started, folder, expected):
    candidate = started("unchanged")
    candidate.load(folder)
    os.kill(candidate.child.pid, signal.SIGKILL)
    assert "was killed (signal SIGKILL)" in said(process.Died, lambda: one_shot(candidate))
    assert np.array_equal(one_shot(candidate), expected)


def test_the_checkpoint_is_a_copy(unchanged, folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    unchanged.load(folder)
    assert not list(unchanged.work.glob("checkpoint-*"))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_candidate_may_take_its_folder_away(started, folder, expected):
    candidate = started("unchanged")
    candidate.load(folder)
    shutil.rmtree(candidate.work)
    assert said(process.Died, lambda: candidate.load(folder)) == process.FOLDER_GONE
    candidate.load(folder)  # in a new process, with a folder of its own
    assert np.array_equal(one_shot(candidate), expected)
    assert not list(candidate.home.glob("checkpoint-*"))


def test_secrets_stay_in_the_harness(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    environment = surroundings.variables(tmp_path, 3, 1 << 30)
    assert "secret" not in environment.values()
    assert environment["MLX_ENABLE_TF32"] == "0"


@pytest.mark.parametrize("planted", ["link", "circle", "folder", "nothing", "pipe", "pickle", "large", "short"])
def test_no_file_of_a_candidate_is_trusted(unchanged, tmp_path, planted):
    file = unchanged.work / f"{planted}.npy"
    if planted == "link":
        np.save(tmp_path / "other.npy", np.zeros(3, np.float32))
        file.symlink_to(tmp_path / "other.npy")
    elif planted == "circle":
        file.symlink_to(file)
    elif planted == "folder":
        file.mkdir()
    elif planted == "pipe":
        os.mkfifo(file)
    elif planted == "pickle":
        np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    elif planted != "nothing":
        np.save(file, np.zeros(1000, np.float32))
        if planted == "short":
            os.truncate(file, 200)
    with pytest.raises(ValueError):  # noqa: PT011 - any: the caller makes it a sentence
        unchanged._array(file, most=1000)


def test_ids_of_both_libraries_are_taken(unchanged, folder, expected):
    unchanged.load(folder)
    got = unchanged.run("one shot", torch.as_tensor(IDS), [9], cached=False)
    assert np.array_equal(got, unchanged.run("one shot", IDS.numpy(), [9], cached=False))
