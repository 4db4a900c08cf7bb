"""What hypothesis draws: cases that know where bugs of this model hide (method, section 5)."""

from .cases import PROFILES, Case, Profile, cases
from .weights import checkpoint_tensors, tensor

__all__ = ["PROFILES", "Case", "Profile", "cases", "checkpoint_tensors", "tensor"]
