"""Imports what is not installed, twice; what a try guards does not count."""

import no_such_library.part

try:
    import guarded_library
except ImportError:
    guarded_library = None
from no_other_library import anything

Model = ModelArgs = anything(no_such_library, guarded_library)
