"""What is done to a port's caches, one operation after the other: written down, and what became of each."""

from __future__ import annotations

import functools
from collections.abc import Callable

from hypothesis.stateful import rule

from .offers import OFFERS, words_of
from .refusals import refuses

# Lives by themselves, in which mlx-lm drives the port: a refusal ends them.
BY_MLX_LM = {
    "serve_steps": "mlx-lm's generator",
    "serve_batches": "mlx-lm's BatchGenerator",
    "serve_turns": "mlx-lm's store of prompts",
}


def operation(mark: Callable = rule, **drawn):
    """A rule that writes down what it was given, and what became of it."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def step(self, **given):
            self.done.append((function.__name__, given))
            self.trying = function.__name__ if function.__name__ in OFFERS else None
            told = len(self.script)
            try:
                function(self, **given)
            except AssertionError as error:
                self.fail(str(error), raised=False)
                raise
            except Exception as error:
                said = " ".join(str(error).split())[:300].rstrip(".")
                if self.trying and refuses(error) and self.goes_on_without(self.trying):
                    kind = "" if type(error) is NotImplementedError else f"{type(error).__name__}: "
                    self.lives.lacking[self.trying] = f"The port offers no {words_of(self.trying)}: {kind}{said}."
                    del self.script[told:]
                    return
                if function.__name__ in BY_MLX_LM and refuses(error):
                    self.lives.lacking[function.__name__] = f"{BY_MLX_LM[function.__name__]} is refused: {said}."
                    return
                self.fail(f"{function.__name__} raised {type(error).__name__}: {said}", raised=True)
                raise

        return mark(**drawn)(step)

    return decorate


def undrawn(**drawn):
    """No rule: such an operation is in fixed lives alone."""
    return lambda step: step
