"""Where the fixtures lie: inside the installed package, or at the top of a checkout."""

from pathlib import Path

from ..errors import BadEnvironment


def fixtures_path() -> Path:
    """Return the folder that holds `configs/` and `golden/`.

    A wheel carries it as `parity/fixtures`; a checkout and an editable install have it beside `parity/`.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "fixtures", package.parent / "fixtures"):
        if (folder / "golden").is_dir() and (folder / "configs").is_dir():
            return folder
    raise BadEnvironment(
        f"the fixtures of dsv4-parity are neither in {package} nor beside it; install dsv4-parity again."
    )
