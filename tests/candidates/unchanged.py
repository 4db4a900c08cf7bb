"""dsv4_mlx itself."""

from dsv4_mlx import Model as Base
from dsv4_mlx import ModelArgs  # noqa: F401

Model = Base
