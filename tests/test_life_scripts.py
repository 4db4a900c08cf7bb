"""A broken life as a script of mlx-lm calls: it does what the life did, and shows what the life showed.

Run: pytest tests/test_life_scripts.py
"""

import re

import mlx_lm.models.cache
import pytest

from parity.jobs.lives import port
from parity.lives import served
from parity.lives.exploring import relive, shorter
from parity.lives.port import Lives
from parity.lives.script import HELPERS, IMPORTS
from parity.pairs import registry
from parity.report import view

CONFIG = registry()["cache"].configs[0]
PAST = [("first", {"tokens": 9, "seed": 0}), ("new", {"tokens": 5, "seed": 1}), ("merge", {"which": [0, 1]})]
ENDS = {
    "prefill": [PAST[0]],
    "decode": [PAST[0]],
    "trim": [PAST[0], ("trim", {"which": 0, "tokens": 3})],
    "save_and_restore": [PAST[0], ("save_and_restore", {"which": 0})],
    "weigh": [PAST[0], ("weigh", {"which": 0})],
    "branch": [PAST[0], ("branch", {"which": 0})],
    "merge": PAST,
    "ragged": [*PAST, ("ragged", {"which": 0, "counts": [4, 7], "padding": 2, "left": False, "seed": 3})],
    "extract": [*PAST, ("extract", {"which": 0, "row": 1})],
    "filter": [*PAST, ("filter", {"which": 0, "keep": [False, True]})],
    "extend": [*PAST, ("merge", {"which": [1]}), ("extend", {"which": 0, "other": 1})],
}


class Doubting(Lives):
    """Calls the logits wrong of the last token that a life feeds."""

    calls = 0
    at = -1

    def judge(self, row, got):
        wrong = super().judge(row, got)
        self.calls += 1
        if self.calls != self.at:
            return wrong
        self.suspect = row, 9.0
        return "is doubted"


def doubted(life, model):
    count = Doubting(model)
    assert relive(count, life).broken is None
    lives = Doubting(model)
    lives.at = count.calls
    return relive(lives, life).broken


def run(lines, model, folder, monkeypatch, capsys):
    """What the script prints, in its own folder."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec("\n".join([IMPORTS, HELPERS, *lines]), {"model": model})
    return capsys.readouterr().out


def error_of(said):
    return float(re.search(r"token \d+ is off by (\S+)", said)[1])


@pytest.fixture(scope="module")
def sound():
    return port(CONFIG, 0, "float32")


@pytest.mark.parametrize("name", ENDS)
def test_a_script_does_what_the_life_did(sound, tmp_path, monkeypatch, capsys, name):
    """Where nothing is wrong it ends with the same logits as one call."""
    broken = doubted([*ENDS[name], ("prefill", {"which": len(ENDS[name]), "tokens": 4, "seed": 5})], sound)
    said = run(broken.script, sound.model, tmp_path, monkeypatch, capsys)
    assert error_of(said) < 1e-4
    assert name in ("prefill", "decode") or any(
        name.partition("_")[0] in line or "nbytes" in line or "copy" in line or "prepare" in line
        for line in broken.script
    )


@pytest.mark.parametrize("schedule", served.NEEDS)
def test_a_script_of_requests_does_what_they_did(sound, tmp_path, monkeypatch, capsys, schedule):
    broken = doubted(served.lives(schedule, 0)[0], sound)
    assert error_of(run(broken.script, sound.model, tmp_path, monkeypatch, capsys)) < 1e-4


@pytest.mark.parametrize("schedule", ["lives", "batches"])
def test_a_script_shows_what_is_wrong(tmp_path, monkeypatch, capsys, schedule):
    monkeypatch.setattr("dsv4_mlx.positions.Call.starts", property(lambda self: [self.start] * len(self.rows)))
    model = port(CONFIG, 0, "float32")
    life = (
        served.lives("batches", 0)[0]
        if schedule == "batches"
        else [*PAST, ("decode", {"which": 2, "tokens": 2, "seed": 2})]
    )
    broken = shorter(model, frozenset(), relive(Lives(model), life).broken)
    assert broken.suspect[1] > 1
    error = error_of(run(broken.script, model.model, tmp_path, monkeypatch, capsys))
    assert error > 100 * model.limits.largest
    assert len(broken.script) < 20


def test_a_script_raises_what_the_life_raised(tmp_path, monkeypatch, capsys):
    def wrong(self, *given):
        raise KeyError("row")

    monkeypatch.setattr("dsv4_mlx.cache.LayerCache.filter", wrong)
    model = port(CONFIG, 0, "float32")
    broken = relive(Lives(model), [*PAST, ("filter", {"which": 0, "keep": [True, False]})]).broken
    assert broken.raised
    with pytest.raises(KeyError):
        run(broken.script, model.model, tmp_path, monkeypatch, capsys)


def test_what_is_shown_of_a_long_life_is_its_end():
    lines = [f"step {index}" for index in range(view.SHORT + 3)]
    assert view.life({"life": lines}) == ["... 3 lines before", *lines[3:]]
    assert view.life({"life": ["x" * 500]}) == ["x" * view.WIDE + " ..."]
    assert view.life({}) == []
    assert hasattr(mlx_lm.models.cache, "LRUPromptCache")  # what the script imports


def test_a_script_holds_a_port_that_gives_last_logits_alone_to_each_beginning(sound):
    """And any other to one call over all tokens."""
    names = {}
    exec("\n".join([IMPORTS, HELPERS]), names)
    ids, called = [3, 1, 4, 1, 5], []
    for last in (False, True):
        names["model"] = lambda given, cache: sound.model(given, cache=cache)[:, -1 if last else 0 :]  # noqa: B023
        names["make_prompt_cache"] = lambda model: (called.append(last), sound.make_cache())[1]  # noqa: B023
        assert abs(names["alone"](ids) - sound.alone(names["mx"].array([ids]))[0]).max().item() < 1e-4
    assert called == [False] + [True] * 6
