"""Ways to break the harness so that it would call something right that is not, and the tests that notice.

One edit of one file each. `tests/test_sabotages.py` makes it in a copy of the repository and runs the tests that are
named: they must go red. `python tests/sabotages.py` writes the table in docs/sabotages.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TABLE = REPOSITORY / "docs" / "sabotages.md"
HEAD = """# Sabotages

A mutation score from the other side: each row is one edit of the *harness* that would let it call something right that
is not. The tests that are named go red with it. `pytest tests/test_sabotages.py` shows three of them, `-m slow` all.

| what is sabotaged | file | caught by |
|---|---|---|
"""


@dataclass(frozen=True)
class Sabotage:
    """`old` occurs once in `file`; `caught_by` are arguments of pytest."""

    what: str
    file: str
    old: str
    new: str
    caught_by: str


SABOTAGES = [
    # the limit
    Sabotage(
        "the limit of the RMS is infinite",
        "parity/judging/tolerance.py",
        "limit_rms=max(rule.rms * slack * null_rms, floor_rms)",
        "limit_rms=math.inf",
        "tests/test_tolerance.py",
    ),
    Sabotage(
        "the limit of the maximum is infinite",
        "parity/judging/tolerance.py",
        "limit_max=max(rule.maximum * slack * null_max, floor_max)",
        "limit_max=math.inf",
        "tests/test_tolerance.py",
    ),
    Sabotage(
        "bfloat16 may be as far off as float32",
        "parity/judging/tolerance.py",
        "rms=1.5,",
        "rms=15.0,",
        "tests/test_tolerance.py",
    ),
    Sabotage(
        "what is not finite has no size",
        "parity/judging/tolerance.py",
        "sqrt().item() if x.numel() else 0.0\n    return value if math.isfinite(value) else math.inf",
        "sqrt().item() if x.numel() else 0.0\n    return value if math.isfinite(value) else 0.0",
        "tests/test_tolerance.py",
    ),
    Sabotage(
        "everything is masked as undefined",
        "parity/judging/tolerance.py",
        ").all(0)\n    exact, baseline, candidate",
        ").any(0)\n    exact, baseline, candidate",
        "tests/test_tolerance.py",
    ),
    Sabotage(
        "comparing nothing is an agreement",
        "parity/judging/tolerance.py",
        "if undefined.numel() and undefined.all():",
        "if False:",
        "tests/test_tolerance.py",
    ),
    Sabotage(
        "errors of many examples are never pooled",
        "parity/judging/tolerance.py",
        "if rows < SMALL:\n        return 0.0",
        "if True:\n        return 0.0",
        "tests/test_tolerance.py",
    ),
    # exact, baseline, null
    Sabotage(
        "exact is taken from the candidate",
        "parity/judging/oracle.py",
        "judged.taps[name] = measure_rows(reference, baseline.taps[name], *others, got, dtype)",
        "judged.taps[name] = measure_rows(got.double(), baseline.taps[name], *others, got, dtype)",
        "tests/test_false_alarms.py -k flagged",
    ),
    Sabotage(
        "a tensor that the reference cannot give is left out",
        "parity/judging/oracle.py",
        'judged.broken[name] = "is not finite in the exact reference, so that it cannot be compared"',
        "pass",
        "tests/test_sabotages.py -k reference_without_numbers",
    ),
    Sabotage(
        "a tensor that the candidate does not give is left out",
        "parity/judging/oracle.py",
        'judged.broken[name] = "was not produced"',
        "pass",
        "tests/test_sabotages.py -k candidate_without_a_tensor",
    ),
    Sabotage(
        "the null moves everything by a percent",
        "parity/judging/rounding.py",
        "moved = torch.where(x == 1, x, x * (1 + step * torch.finfo(x.dtype).eps))",
        "moved = x * (1 + 0.01 * step)",
        "tests/test_rounding.py",
    ),
    Sabotage(
        "exact runs in float32",
        "parity/cases/strategies/weights.py",
        '"float64": torch.float64',
        '"float64": torch.float32',
        "tests/test_sabotages.py -k exact_has_twice_the_bits",
    ),
    # choices
    Sabotage(
        "every choice is legal",
        "parity/judging/decisions.py",
        "illegal=int(too_far.sum())",
        "illegal=0",
        "tests/test_decisions.py",
    ),
    Sabotage(
        "the margin of a choice is a hundred times as wide",
        "parity/judging/decisions.py",
        "behind > 2 * margin",
        "behind > 200 * margin",
        "tests/test_decisions.py",
    ),
    Sabotage(
        "expert tables need not agree",
        "parity/judging/decisions.py",
        "return Choice(tokens, 0, wrong, float",
        "return Choice(tokens, 0, 0, float",
        "tests/test_decisions.py",
    ),
    Sabotage(
        "every rounding is undecided",
        "parity/judging/undecided.py",
        "return noise.amax(0) <= FLIP * usual, noise.amax(0)",
        "return noise.amax(0) < 0, noise.amax(0)",
        "tests/test_undecided.py",
    ),
    # the verdict
    Sabotage(
        "of no verdicts the verdict is parity",
        "parity/results.py",
        "if verdict in verdicts), Verdict.COVERAGE_GAP)",
        "if verdict in verdicts), Verdict.PARITY)",
        "tests/test_sabotages.py -k nothing_is_no_pass",
    ),
    Sabotage(
        "what diverges ends with exit code 0",
        "parity/results.py",
        "Verdict.DIVERGES: 1,",
        "Verdict.DIVERGES: 0,",
        "tests/test_outputs.py -k closed_pipe",
    ),
    Sabotage(
        "an example that raises is passed over",
        "parity/jobs/search.py",
        'self.fail(case, f"dsv4_mlx raised {error}", Verdict.CRASHED)',
        "return",
        "tests/test_cli.py -k raises_everywhere",
    ),
    Sabotage(
        "the reference is not held to itself",
        "parity/jobs/run.py",
        "report.consistency = consistency.check(profile, seed)",
        "report.consistency = []",
        "tests/test_cli.py -k disagrees_with_itself",
    ),
    # recordings
    Sabotage(
        "recordings may be off by anything",
        "parity/judging/recorded.py",
        "BOTH_SIDES = 2.0",
        "BOTH_SIDES = 1e9",
        "tests/test_golden.py -k one_wrong_number",
    ),
    Sabotage(
        "an implementation that raises agrees with a recording",
        "parity/jobs/golden.py",
        "if name in self.raised:",
        "if False:",
        "tests/test_cli.py -k raises_everywhere",
    ),
    Sabotage(
        "weights need not be finite",
        "reference_torch/checkpoint.py",
        "if not _finite(values):",
        "if False:",
        "tests/test_golden.py -k weights_that_are_not_finite",
    ),
    Sabotage(
        "a recording may lack taps",
        "parity/cases/recordings.py",
        "lacking = [name for name in _promised(recording) if name not in vectors]",
        "lacking = []",
        "tests/test_golden.py -k damaged",
    ),
    Sabotage(
        "recorded choices are not compared",
        "parity/jobs/golden.py",
        "ratio = max(worst, 1.0 + 1e-9) if illegal else 0.0",
        "ratio = 0.0",
        "tests/test_golden.py -k one_wrong_choice",
    ),
    # the gate
    Sabotage(
        "every probe is run in one call only",
        "parity/gate/matrix.py",
        "matrix.cells += [_cell(engine, family, schedule, matrix) for schedule in probe.schedules]",
        "matrix.cells += [_cell(engine, family, schedule, matrix) for schedule in probe.schedules[:1]]",
        'tests/test_gate.py -k "every_cell and not all"',
    ),
    Sabotage(
        "logits that are not finite are measured as zeros",
        "parity/gate/matrix.py",
        "if not logits.isfinite().all():",
        "logits = logits.nan_to_num()\n    if False:",
        "tests/test_gate.py -k returns_nan",
    ),
    Sabotage(
        "what raises is not offered",
        "parity/gate/matrix.py",
        "isinstance(problem, (NotOffered, MissingImports)) else",
        "isinstance(problem, (NotOffered, MissingImports, Raised)) else",
        "tests/test_gate.py -k crashed_in_a_whole_column",
    ),
    Sabotage(
        "a few cells are enough for a verdict",
        "parity/jobs/gate_verdict.py",
        "if report.candidate.kind not in NOT_OFFERED_BY:",
        "if True:",
        "tests/test_gate.py -k fewer_cells",
    ),
    Sabotage(
        "what is required need not be offered",
        "parity/jobs/gate_verdict.py",
        "gap.required = gap.what in require",
        "gap.required = False",
        'tests/test_gate.py -k "required_a_failure"',
    ),
    Sabotage(
        "nothing is confirmed compiled",
        "parity/gate/confirm.py",
        "with engine.compiled():",
        "if True:",
        "tests/test_gate.py -k only_when_compiled",
    ),
    Sabotage(
        "a broken life of the caches is as good as another",
        "parity/lives/port.py",
        "wrong = [token for token, ratio in enumerate(over) if beyond(ratio)]",
        "wrong = []",
        "tests/test_cache_defects.py -k wrong_token",
    ),
    Sabotage(
        "lives in which nothing was judged agree",
        "parity/jobs/lives.py",
        "if not sum(lives.tokens + lives.generations for lives in done) and broken is None:",
        "if False:",
        "tests/test_sabotages.py -k nothing_is_no_pass",
    ),
    # the diagnosis
    Sabotage(
        "any defect resembles any port",
        "parity/gate/diagnosis.py",
        "return family.measure(schedule, given, whole, judged).ratio <= SAME",
        "return True",
        'tests/test_diagnosis.py -k "unknown_defect_is_red"',
    ),
    Sabotage(
        "comparing no token is a resemblance",
        "parity/gate/diagnosis.py",
        "if not judged[: len(run)].any():  # nothing was shown\n            return False",
        "if not judged[: len(run)].any():  # nothing was shown\n            return True",
        "tests/test_diagnosis.py -k finite_nowhere",
    ),
    Sabotage(
        "defects are put in, and nothing changes",
        "parity/gate/defects/patching.py",
        "for function, parts in swaps:\n            _give(function, parts)",
        "pass",
        "tests/test_defects.py -k restored",
    ),
    # the candidate's process and the report
    Sabotage(
        "a candidate's memory is not watched",
        "parity/candidates/usage.py",
        "return sum(_resident(member) for member in family(pid))",
        "return 0",
        "tests/test_usage.py",
    ),
    Sabotage(
        "red cells are passed tests in JUnit",
        "parity/report/junit.py",
        '"diverges": "failure", ',
        "",
        "tests/test_report_renderings.py",
    ),
    Sabotage(
        "a report that could not be written is as good as one that was",
        "parity/commands/outputs.py",
        "return code or (problems[0].exit_code if problems else 0)",
        "return code",
        "tests/test_outputs.py -k every_document_is_tried",
    ),
    Sabotage(
        "tensors that belong to no part of the model are ignored",
        "dsv4_checkpoints/reading.py",
        "if not rest:",
        "if True:",
        "tests/test_reference_checkpoint.py -k unexpected",
    ),
    Sabotage(
        "two spellings of one tensor may differ",
        "dsv4_mlx/checkpoint.py",
        "if kept.shape != left.shape or not mx.array_equal(_bits(kept), _bits(left)).item():",
        "if kept.shape != left.shape:",
        "tests/test_checkpoint_families.py -k three_spellings",
    ),
    Sabotage(
        "what the config says of a module need not be so",
        "dsv4_checkpoints/reading.py",
        "if (told or FLOAT) != held and",
        "if False and",
        "tests/test_checkpoint_families.py -k must_be_so",
    ),
    Sabotage(
        "plain numbers show that a port reads packed weights",
        "parity/gate/loading.py",
        'if FAMILIES[name].packing != "none" or name == PUBLISHED:',
        "if True:",
        "tests/test_gate.py -k names_is_judged_on_them",
    ),
    Sabotage(
        "no row counts, as if no published checkpoint needed any",
        "parity/jobs/gate.py",
        '"" if counted(p) else p.beyond',
        'p.beyond or "none needs it"',
        "tests/test_gate.py -k where_it_is_asked_for",
    ),
    Sabotage(
        "no port is seen to simulate the published roundings",
        "parity/gate/filling.py",
        "self.simulation, found = step, other",
        "found = other",
        "tests/test_gate.py -k simulates_the_published_roundings",
    ),
    Sabotage(
        "no stage of a checkpoint is red",
        "parity/streamed/stages.py",
        "if not judged.ratio <= 1:",
        "if False:",
        "tests/test_checkpoint_run.py -k red_at_its_first_stage",
    ),
    Sabotage(
        "a block is judged on what the candidate's last one gave",
        "parity/streamed/stages.py",
        'alone = block.observed(given["input"], ids, calls, paths, embed)',
        'alone = block.observed(given.get("candidate", given["input"]), ids, calls, paths, embed)',
        "tests/test_checkpoint_run.py -k judged_alone",
    ),
    Sabotage(
        "rounding explains every tensor of a conversion",
        "parity/conversion/weights.py",
        "return max(self.beyond, self.gain_beyond)",
        "return 0.0",
        "tests/test_conversions.py -k rounding_does_not_explain",
    ),
    Sabotage(
        "experts that no token chose are not compared with the original's",
        "parity/conversion/block.py",
        "if name not in self.weights.found:",
        "if False:",
        "tests/test_conversions.py -k no_token_chose",
    ),
    Sabotage(
        "what no program can load of a conversion is passed over",
        "parity/conversion/stages.py",
        'return diverges(stage, "; ".join(told)) if told else stage',
        "return stage",
        "tests/test_conversions.py -k rounding_does_not_explain",
    ),
]


def table() -> str:
    """The page of the docs."""
    rows = [
        f"| {one.what} | `{one.file}` | `pytest {one.caught_by.replace('|', chr(92) + '|')}` |" for one in SABOTAGES
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
