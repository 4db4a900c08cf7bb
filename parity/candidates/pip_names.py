"""What pip calls the modules that a port imports."""

from __future__ import annotations

from importlib import metadata

from .adapters.imports import SHARED

# Only where pip's name is another one; what is not installed no metadata tells.
DIFFERENT = {
    "PIL": "Pillow",
    "attr": "attrs",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "google.protobuf": "protobuf",
    "jwt": "PyJWT",
    "mlx_lm": "mlx-lm",
    "mlx_vlm": "mlx-vlm",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


def with_pip_names(names: list[str]) -> str:
    """Modules that are missing, as a sentence lists them: "numpy, yaml (pip: pyyaml)"."""
    installed = metadata.packages_distributions()
    return ", ".join(_told(name, installed) for name in names)


def _told(name: str, installed: dict[str, list[str]]) -> str:
    if name in DIFFERENT and name not in installed:
        return f"{name} (pip: {DIFFERENT[name]})"
    top = name.partition(".")[0]
    distributions = set(installed.get(top, ())) if top not in SHARED else set()
    if top != name and len(distributions) == 1:  # there, but of a version without this part
        distribution = distributions.pop()
        return f"{name} (the installed {distribution} {metadata.version(distribution)} lacks it)"
    return name
