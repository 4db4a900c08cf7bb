"""What checkpoints of DeepSeek-V4 look like: every family's names and layouts, as data that both models read.

No arrays are computed here: which tensors make which matrix is decided from names, types and shapes alone.
"""

from .errors import CheckpointError
from .families import FAMILIES
from .family import Family, Place, Spot
from .formats import FLOAT, Format
from .reading import Reading, Twin, read
from .settings import Settings
from .stored import Stored
from .tree import slots

__all__ = [
    "FAMILIES",
    "FLOAT",
    "CheckpointError",
    "Family",
    "Format",
    "Place",
    "Reading",
    "Settings",
    "Spot",
    "Stored",
    "Twin",
    "read",
    "slots",
]
