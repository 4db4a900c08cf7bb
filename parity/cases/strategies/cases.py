"""A case: everything that determines one example, small enough to print and to type back in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

import torch
from hypothesis import strategies as st
from torch import Tensor

from reference_torch import Config

from .configs import configs, pick
from .lengths import chunkings, lengths
from .weights import DTYPES, tensor


@dataclass(frozen=True)
class Profile:
    """How hard to look: examples a pair and type, the longest sequence drawn, and lives of caches with the operations
    in each."""

    name: str
    examples: int
    tokens: int
    lives: int = 0
    operations: int = 0


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", 12, 140, 8, 20),
        Profile("full", 60, 300, 60, 30),
        Profile("exhaustive", 120, 600, 500, 30),
    )
}


@dataclass(frozen=True)
class Case:
    """One example. Weights and inputs follow from `seed`; `chunks` are the tokens of each call, in order.

    cached: whether the candidate gets a cache (always, when there is more than one call). scale: magnitude of the
    inputs.
    """

    config: dict
    seed: int
    batch: int = 1
    chunks: tuple[int, ...] = (1,)
    cached: bool = False
    scale: float = 1.0
    start: int = 0
    quantization_simulation: str = "none"
    shared_expert_clamp: bool = True

    @property
    def tokens(self) -> int:
        return sum(self.chunks)

    @property
    def options(self) -> dict:
        """The options of both packages."""
        return {
            "quantization_simulation": self.quantization_simulation,
            "shared_expert_clamp": self.shared_expert_clamp,
        }

    def spans(self) -> list[tuple[int, int]]:
        """(start, stop) of each call's tokens."""
        stops = [sum(self.chunks[: i + 1]) for i in range(len(self.chunks))]
        return list(zip([0, *stops], stops, strict=False))

    def random(self, purpose: str) -> torch.Generator:
        """A generator for one purpose; purposes do not disturb each other."""
        return torch.Generator().manual_seed((self.seed * 1000003 + sum(map(ord, purpose)) * 7919) % 2**63)

    def floats(self, purpose: str, *shape: int, dtype: str, scale: float | None = None) -> Tensor:
        """Normal values of this shape times `scale`, exactly representable in `dtype`, as float64."""
        values = tensor(self.random(purpose), *shape, scale=self.scale if scale is None else scale)
        return values.to(DTYPES[dtype]).double()

    def ids(self) -> Tensor:
        """Token ids [batch, tokens]."""
        return torch.randint(0, self.config["vocab_size"], (self.batch, self.tokens), generator=self.random("ids"))

    def to_json(self) -> str:
        """One line that `parity run --case` takes back."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Case:
        """A printed case again. Raises ValueError for anything else, ConfigError included."""
        raw = json.loads(text)
        names = {item.name for item in fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            raise ValueError(f"it must be an object with exactly {', '.join(sorted(names))}")
        chunks = raw["chunks"]
        if not isinstance(chunks, list) or not chunks or not all(type(chunk) is int and chunk > 0 for chunk in chunks):
            raise ValueError("'chunks' must be a list of token counts")
        if (
            not all(type(raw[name]) is int and raw[name] >= 0 for name in ("seed", "batch", "start"))
            or raw["batch"] == 0
        ):
            raise ValueError("'seed', 'batch' and 'start' must be integers")
        Config.from_dict(raw["config"])
        return cls(**raw | {"chunks": tuple(chunks)})


@st.composite
def cases(
    draw,
    profile: Profile,
    ratios: st.SearchStrategy | tuple[int, ...] = (0,),
    mtp: int = 0,
    most_tokens: int | None = None,
    complete_group: bool = False,
    incremental: bool = True,
    simulation: str = "none",
    scales: tuple[float, ...] = (1.0, 1e-2, 30.0),
    **fixed,
) -> Case:
    """A case with these ratios (a tuple, or a strategy for one); `fixed` overrides config keys.

    complete_group: at least as many tokens as make one compressed row, for what has no output without one.
    simulation: the quantisation simulation of both sides.
    """
    layers = draw(ratios) if isinstance(ratios, st.SearchStrategy) else ratios
    config = draw(configs(layers, mtp)) | fixed
    total = draw(
        lengths(config, min(profile.tokens, most_tokens or profile.tokens), max(layers) if complete_group else 1)
    )
    chunks = draw(chunkings(total)) if incremental else (total,)
    batch = draw(pick(1, 2, 3)) if total < 200 else 1
    if 4 in layers and 4 <= total < 12:
        batch += 3  # the indexer has a score or two a sequence, and the spread of so few numbers says nothing
    return Case(
        config=config,
        seed=draw(st.integers(0, 2**31 - 1)),
        batch=batch,
        chunks=chunks,
        cached=len(chunks) > 1 or (incremental and draw(pick(False, False, False, False, True))),
        scale=draw(pick(*scales)),
        quantization_simulation=simulation,
        shared_expert_clamp=draw(pick(True, False)),
    )
