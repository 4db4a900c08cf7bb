"""What docs/performance.md says of the figures. Run: pytest tests/bench/test_table.py"""

import json

import pytest
import speed_table
from speed_table import MARKS, plots, tables


def figures(**rates):
    """Decode steps at 512 tokens, by port: tokens a second."""
    return [
        {
            "port": port.replace("_blas", " + OpenBLAS").replace("ours", "dsv4_mlx"),
            "dtype": "float32",
            "measured": "decode",
            "tokens": 512,
            "wall_ms": 1e3 / rate,
            "bytes": 51200,
        }
        for port, rate in rates.items()
    ]


def test_a_ratio_is_to_the_best_peer_with_the_same_blas():
    rows = figures(ours=30.0, slow=10.0, fast=20.0, ours_blas=60.0, slow_blas=50.0, transformers=40.0)
    (line,) = [one for one in tables(rows).splitlines() if one.startswith("| 512 |")]
    assert "30.0 (100)" in line  # bytes a token of context
    said = "1.50 (fast), 0.75 (transformers), 1.20 (slow + OpenBLAS) with OpenBLAS, 1.50 (transformers) with OpenBLAS |"
    assert line.endswith(said)


def test_a_port_that_does_not_run_is_named():
    rows = [*figures(ours=1.0), {"port": "other", "dtype": "float32", "problem": "no GPU"}]
    assert tables(rows).endswith("other does not run in float32: no GPU")


def test_the_page_takes_the_tables_between_its_marks(tmp_path):
    (tmp_path / "performance").mkdir()
    (tmp_path / "performance" / "speed.json").write_text(json.dumps(figures(ours=2.0, peer=1.0)))
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    for _ in range(2):  # once more changes nothing
        speed_table.main(str(tmp_path / "performance"), str(page))
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("\nafter\n")
        assert "old" not in text
        assert "2.00 (peer)" in text
        assert text.count("![decode-float32](performance/decode-float32.svg)") == 1
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="lacks the marks"):
        speed_table.main(str(tmp_path / "performance"), str(page))


def test_a_plot_has_a_line_a_port_and_none_of_another_blas():
    (drawn,) = plots(figures(ours=2.0, peer=1.0, peer_blas=9.0)).values()
    assert drawn.count("<polyline") == 2
    assert "peer</text>" in drawn
