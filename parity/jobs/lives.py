"""Looking for a life of dsv4_mlx's caches after which its logits are not those of the stateless reference."""

from __future__ import annotations

import dataclasses
import json
import shlex
import zlib
from dataclasses import dataclass

import mlx.core as mx
import torch

from reference_torch import Config

from ..cases.strategies import Profile, checkpoint_tensors
from ..errors import BadInput
from ..judging.lived import Lived
from ..judging.sides import MLXSide, TorchSide, from_mlx, to_mlx
from ..lives import served
from ..lives.exploring import FIXED, explore, relive, sort_of
from ..lives.limits import Limits
from ..lives.port import Broken, Lives, Port
from ..lives.state_machine import BEGINNINGS, OPERATIONS
from ..pairs import LifePair
from ..results import Failure, PairResult, Verdict


@dataclass(frozen=True)
class Life:
    """One life: everything that determines it. Weights follow from `seed`, tokens from the operations."""

    config: dict
    seed: int
    operations: list[list]

    def to_json(self) -> str:
        """One line that `parity run --pair cache --case` takes back."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Life:
        """A printed life again. Raises ValueError for anything else, ConfigError included."""
        raw = json.loads(text)
        names = {item.name for item in dataclasses.fields(cls)}
        if not isinstance(raw, dict) or set(raw) != names:
            raise ValueError(f"it must be an object with exactly {', '.join(sorted(names))}")
        operations = raw["operations"]
        if not isinstance(operations, list) or not all(
            isinstance(entry, list) and len(entry) == 2 and entry[0] in OPERATIONS and isinstance(entry[1], dict)
            for entry in operations
        ):
            raise ValueError(f"'operations' must be a list of [name, arguments] with names of {', '.join(OPERATIONS)}")
        if not operations or operations[0][0] not in BEGINNINGS or type(raw["seed"]) is not int or raw["seed"] < 0:
            raise ValueError(f"a life has an integer 'seed' and begins with one of {', '.join(BEGINNINGS)}")
        Config.from_dict(raw["config"])
        return cls(**raw)


class LifeSearch:
    """One pair of lives in one type: `run` and `replay` give its result."""

    def __init__(self, pair: LifePair, dtype: str, profile: Profile, seed: int):
        self.pair, self.dtype, self.profile, self.seed = pair, dtype, profile, seed

    def run(self, shrink: bool) -> PairResult:
        """The profile's lives, spread over the configs; the first broken one, shrunk if asked, ends them."""
        seed = zlib.crc32(f"{self.seed}/{self.pair.name}/{self.dtype}".encode())
        configs = self.pair.configs if self.profile.lives >= FEWEST * len(self.pair.configs) else self.pair.configs[:1]
        done: list[Lives] = []
        for index, config in enumerate(configs):
            share = self.profile.lives // len(configs) + (index < self.profile.lives % len(configs))
            lives = Lives(port(config, seed, self.dtype))
            done.append(explore(lives, share, self.profile.operations, seed, shrink, fixed() if index == 0 else ()))
            if lives.broken is not None:
                return self.result(done, Life(config, seed, plain(lives.broken)), shrink)
        return self.result(done)

    def replay(self, life: Life) -> PairResult:
        """Judge one printed life again."""
        try:
            lives = relive(Lives(port(life.config, life.seed, self.dtype)), life.operations)
        except TypeError as error:
            raise BadInput(f"--case has an operation with other arguments than it takes ({error}).") from error
        return self.result([lives], life)

    def result(self, done: list[Lives], life: Life | None = None, shrunk: bool = False) -> PairResult:
        """The pair's row: how many lives, the largest error over its limit, and the broken life if there is one."""
        broken = done[-1].broken if done else None
        verdict, failure = Verdict.PARITY, None
        if not sum(lives.tokens + lives.generations for lives in done) and broken is None:
            verdict = Verdict.COVERAGE_GAP
        refused = [said.rstrip(".") for lives in done for said in lives.lacking.values()]
        if refused:  # this project's own port offers everything
            verdict = Verdict.COVERAGE_GAP
            failure = Failure(refused[0], None, "random lives", self.reproduce(life))
        if broken is not None:
            verdict = Verdict.CRASHED if broken.raised else Verdict.DIVERGES
            failure = Failure(
                broken.sentence,
                dataclasses.asdict(life),
                f"a life of {len(life.operations)} operations ({', '.join(name for name, _ in life.operations)}); "
                + sort_of(broken.operations),
                self.reproduce(life),
                shrunk,
            )
        return PairResult(
            name=self.pair.name,
            title=self.pair.title,
            spec=self.pair.spec,
            dtype=self.dtype,
            verdict=verdict,
            cases=sum(lives.lives for lives in done),
            ratio=float("inf") if broken is not None else max((lives.ratio for lives in done), default=0.0),
            ties=0,
            decisions=0,
            failure=failure,
        )

    def reproduce(self, life: Life | None) -> str:
        """The command that shows it again."""
        command = f"parity run --pair {self.pair.name} --dtype {self.dtype}"
        if life is None:
            return f"{command} --profile {self.profile.name} --seed {self.seed}"
        return f"{command} --case {shlex.quote(life.to_json())}"


def fixed() -> list[list[tuple[str, dict]]]:
    """Lives that none drawn is like: by mlx-lm itself, and those of `exploring`."""
    return [*FIXED, *(life for schedule in served.NEEDS for life in served.lives(schedule, seed=0))]


FEWEST = 10  # lives of a config: with fewer, all go to the first one


def plain(broken: Broken) -> list[list]:
    """A broken life's operations as JSON knows them."""
    return json.loads(json.dumps(broken.operations))


def port(config: dict, seed: int, dtype: str, lived: Lived | None = None) -> Port:
    """dsv4_mlx, held to the stateless reference in float64 on the same weights, within the limits of its type."""
    tensors = checkpoint_tensors(config, seed, dtype)
    lived = lived or Lived(config, tensors, dtype)
    side = TorchSide(config, {}, tensors, "float64")

    @torch.no_grad()
    def reference(ids: mx.array) -> mx.array:
        return to_mlx(side.model(from_mlx(ids).long(), None).float())

    model = MLXSide(config, {}, tensors, dtype).model
    limits = Limits(lived.limit, examine=lambda ids, got: examined(lived, ids, got))
    return Port(
        model, config["vocab_size"], limits, reference=reference, renewed=lambda: port(config, seed, dtype, lived)
    )


def examined(lived: Lived, ids: list[int], got: mx.array) -> list[float | None]:
    """Errors over limits of the last tokens' logits [new, V], on these very tokens; None where one is unclear."""
    found, new = lived.examine(ids), len(got)
    errors = (from_mlx(got).double() - found.exact[-new:]).abs().amax(-1) / found.limit
    clear = found.clear[-new:].tolist()
    return [error if judged else None for error, judged in zip(errors.tolist(), clear, strict=True)]
