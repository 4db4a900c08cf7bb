"""Making mlx-lm find this model by its type, as if it brought the file itself."""

import sys

from mlx_lm.models import cache as mlx_lm_cache

from .cache import LayerCache

MODULE = "mlx_lm.models.deepseek_v4"


def register():
    """Let ``mlx_lm.load`` and every ``mlx_lm`` command take this package for model type ``deepseek_v4``.

    mlx-lm imports ``mlx_lm.models.<model_type>`` and asks it for Model and ModelArgs. Nothing else does this:
    importing the package alone leaves mlx-lm's own choice, which `parity gate mlx_lm.models.deepseek_v4` judges.
    """
    sys.modules[MODULE] = sys.modules[__package__]


def register_cache():
    """Let mlx-lm's ``load_prompt_cache`` find the class: it looks for the entries' names in its own module."""
    mlx_lm_cache.LayerCache = mlx_lm_cache.ExtractedLayerCache = LayerCache
