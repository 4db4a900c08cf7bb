"""A run over a range of layers, so that two machines share one checkpoint: which stages it judges, and how two reports
become the one that a single run gives."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from ..errors import BadInput
from ..results import Verdict, overall
from .results import SCHEMA, CheckpointReport

FILES, EMBEDDING, HEAD = "files", "embedding", "head"  # the first of a conversion alone
LAYER = re.compile(r"layer (\d+)")
# What two parts of one run have in common.
FACTS = ("family", "layers", "mtp_blocks", "tokens", "ids", "decoded", "dtype", "original_family")


@dataclass(frozen=True)
class Range:
    """Layers `first` to `last` of a model with `layers`; embedding and files go with layer 0, head and MTP blocks with
    the last."""

    first: int
    last: int
    layers: int

    @classmethod
    def read(cls, text: str | None, layers: int) -> Range:
        """From `A-B` or `A`; all layers for None. Raises BadInput."""
        if text is None:
            return cls(0, layers - 1, layers)
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < layers:
            raise BadInput(
                f"--layers {text} is no range of layers 0 to {layers - 1}; write 0-{layers - 1}, or one number."
            )
        return cls(first, last, layers)

    @property
    def whole(self) -> bool:
        """Whether it is all of the model."""
        return (self.first, self.last) == (0, self.layers - 1)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def judges(self, stage: str) -> bool:
        """Whether a stage is one of this part's."""
        return self.first <= self.place(stage) <= self.last

    def ends_before(self, stage: str) -> bool:
        """Whether no stage from this one on is."""
        return self.place(stage) > self.last

    def place(self, stage: str) -> int:
        """The layer that a stage goes with."""
        found = LAYER.fullmatch(stage)
        return int(found[1]) if found else 0 if stage in (FILES, EMBEDDING) else self.layers - 1


def stage_names(facts: dict) -> list[str]:
    """The stages of a whole run, in order."""
    first = [FILES, EMBEDDING] if "original" in facts else [EMBEDDING]
    layers = [f"layer {index}" for index in range(facts["layers"])]
    return [*first, *layers, HEAD, *(f"MTP block {index}" for index in range(facts["mtp_blocks"]))]


def conclude(report: CheckpointReport) -> None:
    """The verdict of all stages, and the first that deviates in a sentence."""
    report.verdict = overall([Verdict(stage["verdict"]) for stage in report.stages])
    facts, count = report.facts, len(report.stages)
    original, part = facts.get("original"), facts.get("part")
    if report.verdict is Verdict.PARITY:
        on = f"{facts['tokens']} tokens in {facts['dtype']}"
        stages = f"all {count} stages" if not part else f"the {count} stages of layers {part}"
        report.sentence = (
            f"{report.checkpoint} is {original}, honestly rounded: in {stages} rounding explains every tensor and what "
            f"dsv4_mlx makes of {on}."
            if original
            else f"dsv4_mlx computes what the reference computes from {report.checkpoint}: {stages} agree on {on}."
        )
        return
    bad = next(stage for stage in report.stages if stage["verdict"] == report.verdict.value)
    does = "fails" if report.verdict is Verdict.CRASHED else "deviates"
    who = "the conversion" if original and report.verdict is not Verdict.CRASHED else "dsv4_mlx"
    first = f" of layers {part}" if part else ""
    report.sentence = f"{bad['name']} ({bad['kind']}) is where {who} {does} first{first}: {bad['sentence']}."


def merged(documents: dict[str, dict]) -> CheckpointReport:
    """The report of a single run, from its parts' documents by the names of their files. Raises BadInput."""
    for name, one in documents.items():
        if one.get("schema") != SCHEMA:
            raise BadInput(f"{name} is no report of `parity checkpoint --json`.")
        if one["facts"].keys() & {"held_to", "candidate"}:
            raise BadInput(f"{name} is of the whole model at once, which has no parts to merge.")
        if not one["stages"] or one["verdict"] in ("interrupted", "bad input"):
            raise BadInput(f"{name} is of a run that did not end ({one['sentence'].rstrip('.')}).")
    (first, start), *others = documents.items()
    for name, one in others:
        if differing := [key for key in FACTS if one["facts"].get(key) != start["facts"].get(key)]:
            raise BadInput(f"{first} and {name} are parts of different runs ({', '.join(differing)} differ).")
    facts = {key: value for key, value in start["facts"].items() if key != "part"}
    found: dict[str, dict] = {}
    for name, one in documents.items():
        for stage in one["stages"]:
            if found.setdefault(stage["name"], stage) != stage:
                raise BadInput(f"{name} has other figures of {stage['name']} than an earlier report; judge it once.")
    refused = found.keys() == {FILES}  # nothing else of a conversion that no program can load was judged
    names = [FILES] if refused else stage_names(facts)
    if missing := [name for name in names if name not in found]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(f"No report has {missing[0]}{more}; judge the layers that are missing with --layers.")
    report = CheckpointReport(start["checkpoint"], Verdict.INCONCLUSIVE, "", facts, start["environment"])
    report.stages = [found[name] for name in names]
    last = next((one for one in documents.values() if one["text"]), None)
    if last:
        report.text, report.text_baseline = last["text"], last["text_baseline"]
    report.reproduce = _without_layers(start["reproduce"])
    clocks = [one["clock"] for one in documents.values()]
    report.clock["total_s"] = round(sum(clock.get("total_s", 0) for clock in clocks), 2)
    report.clock["peak_gib"] = max(clock.get("peak_gib", 0) for clock in clocks)
    conclude(report)
    return report


def _without_layers(command: str) -> str:
    words = shlex.split(command)
    if "--layers" in words:
        at = words.index("--layers")
        del words[at : at + 2]
    return shlex.join(words)
