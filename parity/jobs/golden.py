"""`parity golden`: recorded vectors of the official program against both implementations, one shot and incremental,
every tap.

Isolated first: each layer gets the recorded streams of the layer before it, so that no error travels. Then the whole
run from the token ids, in one call and in the recorded calls. The recorded decisions are replayed; what each side
would have chosen itself must be legal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from reference_torch.quantization import hadamard

from ..cases.recordings import Recording, find, load
from ..errors import stopped_by
from ..judging import oracle, taps, undecided
from ..judging.recorded import Family, by_rms, by_token
from ..judging.sides import MLXSide, TorchSide
from ..results import GoldenResult, GoldenTap, Report, Verdict, overall

IMPLEMENTATIONS = ("reference_torch", "dsv4_mlx")


class Replay:
    """One recorded case through everything; `judge` gives one result an implementation."""

    def __init__(self, recording: Recording, seed: int = 0):
        self.recording, self.seed = recording, seed
        options = {
            "quantization_simulation": recording.options.quantization_simulation,
            "shared_expert_clamp": recording.options.shared_expert_clamp,
        }
        make = lambda side, dtype: side(recording.raw, options, recording.tensors, dtype)  # noqa: E731
        self.exact, self.base = make(TorchSide, "float64"), make(TorchSide, recording.dtype)
        self.implementations = {"reference_torch": self.base, "dsv4_mlx": make(MLXSide, recording.dtype)}
        self.paths = oracle.decision_paths(recording.raw)
        self.picks = recording.picks()
        self.found: dict[str, list[GoldenTap]] = {name: [] for name in IMPLEMENTATIONS}
        self.raised: dict[str, str] = {}

    def judge(self, progress: Callable[[str], None]) -> list[GoldenResult]:
        """Every tap of the recording, for both implementations."""
        vectors = self.recording.vectors
        for layer in range(self.recording.config.num_hidden_layers):
            progress(f"{self.recording.name}: layer {layer}")
            self.layer(layer)
        self.compare_all("isolated", {"logits.oneshot": "logits.oneshot"}, self.from_last_streams, {})
        if "mtp.logits.oneshot" in vectors:
            self.compare_all("isolated", {"mtp.logits.oneshot": "mtp.logits.oneshot"}, self.mtp, {})
        progress(f"{self.recording.name}: whole run")
        self.whole()
        return [self.result(name) for name in IMPLEMENTATIONS]

    # --- what is run ---------------------------------------------------------------------------------------

    def streams_before(self, layer: int) -> Tensor:
        """The recorded input of a layer, as float64."""
        if layer:
            return self.recording.vectors[f"layers.{layer - 1}.streams"].double()
        embedded = self.recording.tensors["embed.weight"].double()[self.recording.ids]
        return embedded[:, :, None].expand(-1, -1, self.recording.config.hc_mult, -1)

    def layer(self, layer: int) -> None:
        """One layer on its recorded input: every tap in it, and its decisions."""
        prefix = f"layers.{layer}"
        given = self.streams_before(layer)
        points = {
            "attn": (f"{prefix}.attn", ""),
            "ffn": (f"{prefix}.ffn", ""),
            "router.weights": (f"{prefix}.ffn.gate", ""),
            "compressed_kv": (f"{prefix}.attn.compressor", ""),
            "indexer.compressed": (f"{prefix}.attn.indexer.compressor", ""),
        }
        points = {
            f"{prefix}.{tap}": point for tap, point in points.items() if f"{prefix}.{tap}" in self.recording.vectors
        }
        rotated = not self.recording.simulated

        def run(side) -> dict[str, Tensor]:
            with taps.recording(side.model, points) as record:
                streams = side.model.layers[layer](side.array(given), side.integers(self.recording.ids))
            outputs = {name: calls[0] for name, calls in record.items()} | {f"{prefix}.streams": streams}
            outputs = {
                name: side.tensor(value[0] if isinstance(value, tuple) else value) for name, value in outputs.items()
            }
            index = f"{prefix}.indexer.compressed"
            if rotated and index in outputs:  # the official program rotates these keys even where it rounds nothing
                outputs[index] = hadamard(outputs[index])
            return outputs

        names = {name: name for name in (*points, f"{prefix}.streams")}
        self.compare_all("isolated", names, run, {p: k for p, k in self.paths.items() if p.startswith(f"{prefix}.")})

    def from_last_streams(self, side) -> dict[str, Tensor]:
        """Head mixing, final norm and output head on the recorded last streams."""
        last = self.streams_before(self.recording.config.num_hidden_layers)
        return {"logits.oneshot": side.tensor(side.model.logits(side.array(last)))}

    def mtp(self, side) -> dict[str, Tensor]:
        """The MTP block on the recorded last streams and the next tokens."""
        last = self.streams_before(self.recording.config.num_hidden_layers)
        streams, ids = side.array(last[:, :-1]), side.integers(self.recording.ids[:, 1:])
        return {"mtp.logits.oneshot": side.tensor(side.model.mtp_logits(streams, ids))}

    def oneshot(self, side) -> dict[str, Tensor]:
        """All tokens in one call."""
        return {"logits": side.tensor(side.model(side.integers(self.recording.ids)))}

    def incremental(self, side) -> dict[str, Tensor]:
        """The recorded calls: a prefill, then token by token."""
        ids, state, prefill = side.integers(self.recording.ids), side.model_state(), self.recording.prefill
        parts = [side.tensor(side.model(ids[:, :prefill], state))]
        for token in range(prefill, ids.shape[1]):
            parts.append(side.tensor(side.model(ids[:, token : token + 1], state)))
        return {"logits": torch.cat(parts, dim=1)}

    # --- how it is judged ----------------------------------------------------------------------------------

    def family(self, run: Callable, paths: dict[str, str], picks: dict[str, Tensor], isolated: bool = True) -> Family:
        """The reference's runs of `run`, all with these picks."""
        exactly = lambda: oracle.observe(self.exact, lambda: run(self.exact), paths, picks)  # noqa: E731
        plainly = lambda: oracle.observe(self.base, lambda: run(self.base), paths, picks)  # noqa: E731
        truth_read, exact = undecided.readings(exactly)
        base_read, baseline = undecided.readings(plainly)
        nulls = oracle.null_runs(self.base, lambda: run(self.base), paths, picks, self.recording.dtype, self.seed)
        if not truth_read or self.recording.native:
            return Family(exact, baseline, nulls)
        level = undecided.noise_level(truth_read, base_read)
        if isolated:
            nudged = undecided.cascading_runs(exactly, truth_read, level, self.seed)
        else:
            nudged = undecided.nudged_runs(exactly, level, self.seed)
        return Family(exact, baseline, nulls, nudged, level)

    def picks_for(self, paths: dict[str, str]) -> dict[str, Tensor]:
        return {path: picks for path, picks in self.picks.items() if path in paths}

    def compare_all(self, schedule: str, names: dict[str, str], run: Callable, paths: dict[str, str]) -> None:
        """Run the reference's family and both implementations, and compare each named tap with its recording."""
        picks = self.picks_for(paths)
        family = self.family(run, paths, picks)
        for name, side in self.implementations.items():
            observed = self.observe(name, side, run, paths, picks, family)
            if observed is None:
                continue
            for tap, recorded in names.items():
                self.found[name].append(self.compare(recorded, schedule, family, tap, observed.taps[tap]))
            for path in paths:
                if path in observed.free:
                    self.found[name].append(self.decide(path, family, observed))

    def observe(
        self, name: str, side, run: Callable, paths: dict, picks: dict, family: Family | None
    ) -> oracle.Observation | None:
        """The implementation's run, which for the reference may be the family's baseline; None where it raised."""
        if side is self.base:
            return family.baseline if family else oracle.observe(side, lambda: run(side), paths, picks)
        try:
            return oracle.observe_candidate(side, lambda: run(side), paths, picks)
        except oracle.CandidateRaised as error:
            self.raised.setdefault(name, str(error))
            return None

    def whole(self) -> None:
        """The run from the token ids, in one call and in the recorded calls."""
        family = self.family(self.oneshot, self.paths, self.picks, isolated=False)
        calls = self.for_recorded_calls(family)
        for name, side in self.implementations.items():
            once = self.observe(name, side, self.oneshot, self.paths, self.picks, family)
            steps = self.observe(name, side, self.incremental, self.paths, self.picks, None)
            for tap, spread, seen in (("logits.oneshot", family, once), ("logits.incremental", calls, steps)):
                if seen is not None:
                    self.found[name].append(self.compare(tap, "accumulated", spread, "logits", seen.taps["logits"]))

    def for_recorded_calls(self, family: Family) -> Family:
        """The family whose spread chooses freely where roundings can tip a choice.

        The recorded decisions are those of the one-shot run; in the recorded calls the program may have chosen
        otherwise.
        """
        if self.recording.native:
            run = lambda: self.oneshot(self.base)  # noqa: E731
            nulls = oracle.null_runs(self.base, run, self.paths, None, self.recording.dtype, self.seed)
            return Family(family.exact, oracle.observe(self.base, run, self.paths), nulls)
        if family.nudged:
            freely = lambda: oracle.observe(self.exact, lambda: self.oneshot(self.exact), self.paths)  # noqa: E731
            moved = undecided.nudged_runs(freely, family.level, self.seed + 1)
            return replace(family, nudged=family.nudged + moved)
        return family

    def compare(self, name: str, schedule: str, family: Family, tap: str, got: Tensor) -> GoldenTap:
        """One tensor of an implementation against its recording."""
        recorded = self.recording.vectors[name].double()
        if got.shape != recorded.shape:
            return GoldenTap(
                name,
                schedule,
                float("inf"),
                float("inf"),
                0.0,
                0.0,
                float("inf"),
                0.0,
                note=f"has shape {tuple(got.shape)}",
            )
        exact, baseline, nulls, nudged = family.tap(tap)
        if not all(run.isfinite().all() for run in (exact, baseline, *nulls, *nudged)):
            note = "the reference's values are not finite where the recording's are"
            return GoldenTap(name, schedule, float("inf"), float("inf"), 0.0, 0.0, float("inf"), 0.0, note=note)
        if self.recording.native:
            judged = by_rms(family, tap, got.double(), recorded, free=name == "logits.incremental")
        else:
            judged = by_token(family, tap, got.double(), recorded, causal=schedule == "accumulated")
        return replace(judged, name=name, schedule=schedule)

    def decide(self, path: str, family: Family, observed: oracle.Observation) -> GoldenTap:
        """The recorded choice, and the one the implementation would have made, against the exact scores."""
        module = taps.find(self.exact.model, path)
        layer, kind = path.split(".")[1], "indexer.rows" if self.paths[path] == "indexer" else "router.experts"
        name = f"layers.{layer}.{kind}"
        recorded = self.recording.vectors[name].long()
        judge = lambda picks: oracle.judge_picks(  # noqa: E731
            module, path, picks, family.exact, family.baseline, family.nulls, family.nudged, self.recording.dtype
        )
        choices = [judge(recorded), judge(observed.free[path])]
        illegal = sum(choice.illegal for choice in choices)
        worst = max(choice.worst_excess for choice in choices)
        note = f"{illegal} choices beyond their margin" if illegal else ""
        ratio = max(worst, 1.0 + 1e-9) if illegal else 0.0
        if not family.exact.scores[path].isfinite().all():
            ratio, note = float("inf"), "the reference's scores are not finite"
        ties = sum(choice.ties for choice in choices)
        return GoldenTap(name, "isolated", 0.0, 0.0, 0.0, 0.0, ratio, 0.0, ties, note)

    def result(self, name: str) -> GoldenResult:
        """One implementation's row: all of its taps, and the worst in a sentence."""
        found = self.found[name]
        if name in self.raised:
            sentence = f"{name} raised {self.raised[name]}"
            return GoldenResult(
                self.recording.name, name, self.recording.dtype, Verdict.CRASHED, sentence, float("inf"), 0, found
            )
        worst = max(found, key=lambda tap: tap.ratio)
        verdict = Verdict.PARITY if worst.ratio <= 1 else Verdict.DIVERGES
        ties = sum(tap.ties for tap in found)
        if verdict is Verdict.PARITY:
            sentence = f"{name} agrees with the recording on all {len(found)} comparisons"
            hanging = [tap for tap in found if tap.undecided == 1]
            if any(tap.schedule == "isolated" for tap in hanging):
                verdict = Verdict.INCONCLUSIVE
            if hanging:
                sentence += f", but every token of '{hanging[0].name}' ({hanging[0].schedule}) hangs on a rounding"
        else:
            red = sum(tap.ratio > 1 for tap in found)
            first = next(tap for tap in found if tap.ratio > 1)
            what = first.note or f"RMS error {first.error_rms:.2e} against a limit of {first.limit_rms:.2e}"
            sentence = (
                f"{name} and the recording part in {red} of {len(found)} comparisons, first in "
                f"'{first.name}' ({first.schedule}): "
                f"{what}, {first.ratio:.3g} times what is allowed"
            )
        return GoldenResult(
            self.recording.name, name, self.recording.dtype, verdict, sentence, worst.ratio, ties, found
        )


def golden(arguments: list[str], environment: dict, progress: Callable[[str], None] = lambda text: None) -> Report:
    """Judge every recorded case that the arguments name. Raises BadInput."""
    recordings = [load(folder) for folder in find(arguments)]
    report = Report(command="golden", profile="", seed=0, verdict=Verdict.PARITY, sentence="", environment=environment)
    try:
        for recording in recordings:
            report.golden += Replay(recording).judge(progress)
    except KeyboardInterrupt as stop:
        by = stopped_by(stop)
        report.verdict = Verdict.INTERRUPTED
        report.sentence = f"Interrupted{by} after {len(report.golden) // 2} of {len(recordings)} recorded cases."
        return report
    report.verdict = overall([result.verdict for result in report.golden])
    red = [result for result in report.golden if result.verdict is not Verdict.PARITY]
    cases = len(recordings)
    if red:
        report.sentence = f"{red[0].case}: {red[0].sentence}."
    else:
        report.sentence = (
            f"Both implementations agree with {cases} recorded case{'s' if cases > 1 else ''} on every tap."
        )
    return report
