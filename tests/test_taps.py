"""Watching and steering leaves nothing behind, on torch and on MLX modules alike.

Run: pytest tests/test_taps.py
"""

import mlx.core as mx
import mlx.nn
import pytest
import torch
from helpers import tiny, token_ids

from parity.cases.strategies import checkpoint_tensors
from parity.judging import taps
from parity.judging.sides import MLXSide, TorchSide


class TorchChild(torch.nn.Module):
    def forward(self, x, add=0):
        return 2 * x + add

    def select(self, x, count=None):
        return x + 100


class TorchParent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.children_list = torch.nn.ModuleList([TorchChild(), TorchChild()])

    def forward(self, x):
        return self.children_list[1](self.children_list[0](x), add=1)


class MLXChild(mlx.nn.Module):
    def __call__(self, x, add=0):
        return 2 * x + add

    def select(self, x, count=None):
        return x + 100


class MLXParent(mlx.nn.Module):
    def __init__(self):
        super().__init__()
        self.children_list = [MLXChild(), MLXChild()]

    def __call__(self, x):
        return self.children_list[1](self.children_list[0](x), add=1)


KINDS = {"torch": (TorchParent, torch.tensor), "mlx": (MLXParent, mx.array)}


@pytest.fixture(params=KINDS)
def tree(request):
    """A module with two children, and what makes its arrays."""
    parent, array = KINDS[request.param]
    return parent(), array


def footprint(root):
    """Everything that a wrap could leave behind."""
    return [(type(node), dict(vars(node))) for node in (root, *root.children_list)]


def added(count):
    """A wrapper that adds to the output."""
    return lambda original: lambda *args, **kwargs: original(*args, **kwargs) + count


# --- finding -----------------------------------------------------------------------------------------------


def test_find(tree):
    root, _ = tree
    assert taps.find(root, "") is root
    assert taps.find(root, "children_list.1") is root.children_list[1]
    assert taps.exists(root, "children_list.0.select")
    assert not taps.exists(root, "children_list.2")
    assert not taps.exists(root, "children_list.0.nothing")


# --- wrapping ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["", "select"])
def test_wrap_holds_for_its_block_and_for_one_instance(tree, method):
    root, array = tree
    one, other = root.children_list
    before = footprint(root)
    call = lambda child: (getattr(child, method) if method else child)(array([3])).tolist()  # noqa: E731
    plain = call(one)
    with taps.wrapped(one, method, added(1000)):
        assert call(one) == [plain[0] + 1000]
        assert call(other) == plain
        assert isinstance(one, type(other))  # as code that asks for a class expects
    assert call(one) == plain
    assert footprint(root) == before


@pytest.mark.parametrize("method", ["", "select"])
def test_wraps_nest(tree, method):
    root, array = tree
    child = root.children_list[0]
    before = footprint(root)
    call = lambda: (getattr(child, method) if method else child)(array([3])).tolist()[0]  # noqa: E731
    plain = call()
    with taps.wrapped(child, method, added(1000)):
        with taps.wrapped(child, method, added(20000)):
            assert call() == plain + 21000
        assert call() == plain + 1000
    assert call() == plain
    assert footprint(root) == before


def test_wrapped_child_is_seen_by_its_parent_with_all_arguments(tree):
    root, array = tree
    seen = []

    def wrapper(original):
        def call(*args, **kwargs):
            seen.append((len(args), kwargs))
            return original(*args, **kwargs)

        return call

    with taps.wrapped(root.children_list[1], "", wrapper):
        assert root(array([3])).tolist() == [13]
    assert seen == [(1, {"add": 1})]


@pytest.mark.parametrize("method", ["", "select"])
@pytest.mark.parametrize("where", ["block", "call", "wrapper"])
def test_nothing_is_left_after_an_exception(tree, method, where):
    root, array = tree
    child = root.children_list[0]
    before = footprint(root)

    def wrapper(original):
        if where == "wrapper":
            raise RuntimeError("stop")

        def call(*args):
            raise RuntimeError("stop")

        return call

    def use():
        with taps.wrapped(child, "", added(1)), taps.wrapped(child, method, wrapper):
            if where == "block":
                raise RuntimeError("stop")
            (getattr(child, method) if method else child)(array([3]))

    with pytest.raises(RuntimeError, match="stop"):
        use()
    assert footprint(root) == before
    assert child(array([3])).tolist() == [6]


# --- recording ---------------------------------------------------------------------------------------------


def test_recording_collects_every_call(tree):
    root, array = tree
    points = {"first": ("children_list.0", ""), "whole": ("", ""), "picks": ("children_list.1", "select")}
    with taps.recording(root, points) as record:
        root(array([3]))
        root(array([5]))
        root.children_list[1].select(array([7]))
    assert [x.tolist() for x in record["first"]] == [[6], [10]]
    assert [x.tolist() for x in record["whole"]] == [[13], [21]]
    assert [x.tolist() for x in record["picks"]] == [[107]]
    root(array([3]))
    assert len(record["whole"]) == 2


def test_recording_of_a_path_that_is_not_there_wraps_nothing(tree):
    root, _ = tree
    before = footprint(root)
    with pytest.raises((AttributeError, IndexError)), taps.recording(root, {"a": ("", ""), "b": ("nothing", "")}):
        pass
    assert footprint(root) == before


# --- forcing -----------------------------------------------------------------------------------------------


def test_forcing_gives_each_call_its_tokens_and_keeps_the_free_choice(tree):
    root, array = tree
    child = root.children_list[0]
    choices = array([[[1, 2], [3, 4], [5, -1], [7, 8]]])
    before = footprint(root)
    with taps.forcing(child, choices) as free:
        first = child.select(array([[[10, 11], [12, 13], [14, 15]]]), 3)
        second = child.select(array([[[16, 17]]]), 3)
    assert first.tolist() == [[[1, 2], [3, 4], [5, -1]]]
    assert second.tolist() == [[[7, 8]]]
    assert [x.tolist() for x in free] == [[[[110, 111], [112, 113], [114, 115]]], [[[116, 117]]]]
    assert footprint(root) == before


def test_forcing_a_call_that_has_fewer_items(tree):
    root, array = tree
    with taps.forcing(root.children_list[0], array([[[4, 2, -1]]])):
        assert root.children_list[0].select(array([[[9, 9]]])).tolist() == [[[4, 2]]]


def test_recording_over_forcing_sees_what_was_forced(tree):
    root, array = tree
    child = root.children_list[0]
    with (
        taps.forcing(child, array([[[1]]])) as free,
        taps.recording(root, {"picks": ("children_list.0", "select")}) as record,
    ):
        child.select(array([[[9]]]))
    assert record["picks"][0].tolist() == [[[1]]]
    assert free[0].tolist() == [[[109]]]


# --- the real models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [TorchSide, MLXSide])
def test_one_path_fits_both_packages(side):
    config = tiny((0, 4))
    made = side(config, {}, checkpoint_tensors(config, 0, "float32"), "float32")
    points = {
        "streams": ("layers.1", ""),
        "attention": ("layers.1.attn", ""),
        "scores": ("layers.1.ffn.gate", "scores"),
        "picks": ("layers.1.attn.indexer", "select"),
    }
    ids = made.integers(token_ids(config, 17))
    plain = made.tensor(made.model(ids))
    with taps.recording(made.model, points) as record:
        watched = made.tensor(made.model(ids))
    assert torch.equal(watched, plain)
    shapes = {name: tuple(outputs[0].shape) for name, outputs in record.items()}
    assert shapes == {
        "streams": (1, 17, 4, 24),
        "attention": (1, 17, 24),
        "scores": (1, 17, 6),
        "picks": (1, 17, 3),
    }
    assert torch.equal(made.tensor(made.model(ids)), plain)


@pytest.mark.parametrize("side", [TorchSide, MLXSide])
def test_forced_experts_change_what_follows(side):
    config = tiny((0, 4))
    made = side(config, {}, checkpoint_tensors(config, 0, "float32"), "float32")
    ids = made.integers(token_ids(config, 6))
    plain = made.tensor(made.model(ids))
    with taps.forcing(made.model.layers[1].ffn.gate, made.integers(torch.tensor([[[0, 1]] * 6]))):
        assert not torch.equal(made.tensor(made.model(ids)), plain)
    assert torch.equal(made.tensor(made.model(ids)), plain)
