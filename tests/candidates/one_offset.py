"""dsv4_mlx whose batches take the first row's offset for all rows (D013): right as long as all are of one length."""

import mlx.core as mx

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401
from dsv4_mlx.positions import Call

own = Call.positions.func


def positions(self):
    found = own(self)
    return found if found.ndim == 1 else mx.broadcast_to(found[:1], found.shape)


Call.positions = property(positions)


class Model(Base):
    pass
