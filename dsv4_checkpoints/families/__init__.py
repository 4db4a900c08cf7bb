"""Every family in circulation, one file each, found by listing the folder; the order is that of their numbers."""

import importlib
import pkgutil

from ..family import Family


def _found() -> dict[str, Family]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    families = [importlib.import_module(f"{__name__}.{name}").FAMILY for name in modules]
    return {family.id: family for family in families}


FAMILIES = _found()
