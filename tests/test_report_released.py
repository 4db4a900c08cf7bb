"""The table of released ports, from the documents that the gate wrote of them."""

import json

from report_examples import document

from parity.report import released


def test_one_row_a_release_with_what_was_found():
    lines = released.table([("good 1.0", document("parity")), ("bad 2.0", document("diverging"))]).splitlines()
    assert len(lines) == 4
    good, bad = ([column.strip() for column in line.strip("|").split(" | ")] for line in lines[2:])
    assert good[:5] == ["good 1.0", "parity", "none", "nothing", "none"]
    found = document("diverging")
    assert bad[1] == "diverges"
    assert bad[2] == f"{found['first_deviation']['mechanism']}, {found['first_deviation']['schedule']}"
    for entry in found["diagnosis"]:
        assert all(name in bad[3] for name in entry["defects"])
    red = sum(cell["verdict"] == "diverges" for cell in found["cells"])
    assert bad[4].startswith("D016: line deepseek\\_v4.py:101; ")
    assert " between deepseek\\_v4.py:211 and deepseek\\_v4.py:215; " in bad[4]
    assert bad[5] == f"{red} of {len(found['cells'])}"


def test_a_mechanism_that_raises_is_not_called_judged():
    crashed = document("crashed")
    raising = next(cell["mechanism"] for cell in crashed["cells"] if cell["verdict"] == "crashed")
    assert f"{raising} (raises)" in released.table([("port 1.0", crashed)])


def test_releases_in_the_order_of_their_versions(tmp_path):
    for version in ("0.10.0", "0.9.2"):
        (tmp_path / f"mlx-vlm-{version}.json").write_text(json.dumps(document("parity")))
    released.main(str(tmp_path), str(tmp_path / "out.md"))
    text = (tmp_path / "out.md").read_text()
    assert text.index("mlx-vlm 0.9.2") < text.index("mlx-vlm 0.10.0")
