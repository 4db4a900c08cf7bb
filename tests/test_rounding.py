"""Other rounding is the same maths: small and real differences in float types, none in integers.

Run: pytest tests/test_rounding.py
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny, token_ids

from parity.cases.strategies import checkpoint_tensors
from parity.judging.rounding import MOST_PIECES, OtherBlocks, OtherRounding
from reference_torch import Config, build

TERMS = 200
FUNCTIONS = {
    "linear": lambda a, b: F.linear(a, b),
    "matmul": lambda a, b: torch.matmul(a, b.mT),
    "einsum": lambda a, b: torch.einsum("bi,oi->bo", a, b),
    "sum": lambda a, b: (a[:, None] * b).sum(-1),
    "sum, kept": lambda a, b: (a[:, None] * b).sum(-1, keepdim=True),
    "mean": lambda a, b: (a[:, None] * b).mean(2),
    "softmax": lambda a, b: a.softmax(-1),
    "exp": lambda a, b: a.exp(),
    "sigmoid": lambda a, b: torch.sigmoid(a),
    "silu": lambda a, b: F.silu(a),
    "softplus": lambda a, b: F.softplus(a),
    "rsqrt": lambda a, b: torch.rsqrt(a.square()),
    "sqrt": lambda a, b: a.square().sqrt(),
    "cos": lambda a, b: a.cos(),
    "sin": lambda a, b: a.sin(),
}
SEQUENTIAL = pytest.mark.parametrize("sequential", [True, False], ids=["sequential", "pieces"])


def operands(dtype=torch.float64):
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random, dtype=torch.float64).to(dtype) for shape in ((7, TERMS), (5, TERMS))]


def moved(function, dtype, sequential, seed=1):
    """How far other rounding moves a function: the largest difference, over the largest sum of magnitudes."""
    a, b = operands(dtype)
    plain = function(a, b)
    with OtherRounding(seed, sequential):
        other = function(a, b)
    assert other.dtype == plain.dtype
    assert other.shape == plain.shape
    return ((other - plain).abs() / (function(a.abs(), b.abs()).abs() + plain.abs())).max().item()


@SEQUENTIAL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_move_a_little_and_really(name, dtype, sequential):
    """By no more than a sum of TERMS roundings can, and by no less than one."""
    eps = torch.finfo(dtype).eps
    assert eps / 16 < moved(FUNCTIONS[name], dtype, sequential) < TERMS * eps


@pytest.mark.parametrize("name", FUNCTIONS)
def test_same_seed_same_result_other_seed_other_result(name):
    a, b = operands(torch.float32)
    results = []
    for seed in (3, 3, 4):
        with OtherRounding(seed, sequential=False):
            results.append(FUNCTIONS[name](a, b))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@SEQUENTIAL
def test_exact_arithmetic_stays_exact(sequential):
    """Whole numbers below 2^24 have no rounding to differ in, so any difference would be other maths."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-50, 50, shape, generator=random).float() for shape in ((7, TERMS), (5, TERMS)))
    for name in ("linear", "matmul", "einsum", "sum", "sum, kept"):
        plain = FUNCTIONS[name](a, b)
        with OtherRounding(1, sequential):
            assert torch.equal(FUNCTIONS[name](a, b), plain)


@SEQUENTIAL
def test_integers_and_booleans_are_left_alone(sequential):
    x = torch.randint(0, 99, (5, 9), generator=torch.Generator().manual_seed(0))
    with OtherRounding(1, sequential):
        assert torch.equal(x.sum(-1), torch.tensor(x.numpy().sum(-1)))
        assert torch.equal((x > 50).sum(-1), torch.tensor((x.numpy() > 50).sum(-1)))
        assert x.sum().item() == x.numpy().sum()
        assert torch.equal(torch.arange(5) // 2, torch.tensor([0, 0, 1, 1, 2]))


@pytest.mark.parametrize("equation", ["bshd,bkd->bshk", "bshk,bkd->bshd", "bsjk,bsjd->bskd", "bsgi,goi->bsgo"])
def test_einsum_as_the_reference_writes_it(equation):
    """The summed axis is found wherever it stands."""
    sizes = dict(zip("bshdkjgoi", (2, 3, 4, 5, 6, 7, 8, 9, 10), strict=True))
    left, right = equation.split("->")[0].split(",")
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-9, 9, [sizes[axis] for axis in axes], generator=random).float() for axes in (left, right))
    plain = torch.einsum(equation, a, b)
    with OtherRounding(1, sequential=True):
        assert torch.equal(torch.einsum(equation, a, b), plain)


@pytest.mark.parametrize("length", [0, 1, 2, MOST_PIECES, MOST_PIECES + 1])
def test_short_and_empty_sums(length):
    x = torch.ones(3, length)
    with OtherRounding(1, sequential=True):
        assert x.sum(-1).tolist() == [length] * 3
        assert F.linear(x, torch.ones(2, length)).tolist() == [[length] * 2] * 3


def test_softmax_keeps_masked_entries_at_zero_and_its_sum():
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    x[:, :4] = -torch.inf
    with OtherRounding(1, sequential=False):
        weights = x.softmax(-1)
    assert torch.equal(weights[:, :4], torch.zeros(50, 4))
    assert (weights.sum(-1) - 1).abs().max() < 16 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(
    ("function", "x"),
    [(torch.exp, 0.0), (torch.cos, 0.0), (lambda x: torch.pow(torch.tensor(1e4), x), 0.0)],
    ids=["exp 0", "cos 0", "pow 0"],
)
def test_what_every_library_gets_exactly_stays_exact(function, x):
    x = torch.full((1000,), x)
    plain = function(x)
    with OtherRounding(1, sequential=False):
        assert torch.equal(function(x), plain)


def test_mode_ends_with_its_block():
    a, b = operands(torch.float32)
    plain = F.linear(a, b)
    with pytest.raises(RuntimeError, match="inside"), OtherRounding(1, sequential=True):
        raise RuntimeError("inside")
    assert torch.equal(F.linear(a, b), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_reference_computes_the_same_maths(dtype):
    """All of its operations are known to the mode: logits move by many roundings, not by a term."""
    config = tiny((4, 8))
    model = build(Config.from_dict(config), checkpoint_tensors(config, 0, "bfloat16"), dtype)
    ids = token_ids(config, 9)
    plain = model(ids)
    with OtherRounding(1, sequential=False):
        other = model(ids)
    difference = (other - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert 0 < difference < 100 * torch.finfo(dtype).eps


def test_subnormal_results_are_flushed():
    """exp(-90) is subnormal in float32: PyTorch keeps it, MLX gives 0, and both are correct programs."""
    low = torch.tensor([-90.0, -80.0])
    assert (low.exp() > 0).all()
    with OtherRounding(0, False):
        assert (low.exp() > 0).tolist() == [False, True]


# --- blocks of neighbouring columns --------------------------------------------------------------------------


def matrices(columns=1024):
    random = torch.Generator().manual_seed(2)
    return torch.randn(16, columns, generator=random), torch.randn(256, columns, generator=random)


def spread(mode, x, weight):
    """RMS of how far a float32 product lies from exact, over 20 draws."""
    exact, found = F.linear(x.double(), weight.double()), []
    for seed in range(20):
        with mode(seed):
            found.append((F.linear(x, weight).double() - exact).square().mean())
    return torch.stack(found).mean().sqrt().item()


@pytest.mark.parametrize("kind", ["normal", "outliers", "positive"])
def test_blocks_of_columns_round_as_far_as_gathered_columns(kind):
    """A limit that comes from either is the same to within a factor that no rule notices."""
    x, weight = matrices()
    if kind == "outliers":
        x[:, :5] *= 50
    if kind == "positive":
        x, weight = x.abs(), weight.abs()
    blocks, gathered = (spread(lambda seed, m=m: m(seed, False), x, weight) for m in (OtherBlocks, OtherRounding))
    assert 0.8 < blocks / gathered < 1.6
    plain = (F.linear(x, weight).double() - F.linear(x.double(), weight.double())).square().mean().sqrt().item()
    assert blocks < 1.2 * max(plain, gathered)  # the limit takes the largest of the baseline and the null


@SEQUENTIAL
def test_blocks_are_other_sums_of_the_same_products(sequential):
    x, weight = matrices()
    plain, found = F.linear(x, weight), []
    for seed in (3, 3, 4):
        with OtherBlocks(seed, sequential):
            found.append(F.linear(x, weight))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], plain)
    whole = torch.randint(-50, 50, (7, 40)).float(), torch.randint(-50, 50, (5, 40)).float()
    for columns in (0, 1, 2, 3, 40):
        a, b = (operand[:, :columns] for operand in whole)
        with OtherBlocks(1, sequential):
            assert torch.equal(F.linear(a, b), a @ b.T)
