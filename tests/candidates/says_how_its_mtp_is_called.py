"""Right, MTP block included, which it lets the gate call by its hook."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401


class Model(Base):
    def make_parity_mtp_cache(self):
        return self.make_cache(), self.make_mtp_cache()

    def parity_mtp(self, ids, following, cache=None):
        backbone, mtp = cache or (None, None)
        return self.mtp_logits(self.streams(ids, backbone), following, mtp)
