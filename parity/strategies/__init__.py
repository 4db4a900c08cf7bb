"""What hypothesis draws: cases that know where bugs of this model hide (method, section 5)."""

from .cases import Case, Profile, PROFILES, cases
from .weights import checkpoint_tensors, tensor

__all__ = ["PROFILES", "Case", "Profile", "cases", "checkpoint_tensors", "tensor"]
