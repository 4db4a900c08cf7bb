"""What a caller did wrong, in one sentence."""


class UsageError(ValueError):
    """A call that cannot be answered; nothing was changed by it."""


def as_usage_error(error: ValueError) -> UsageError:
    """The same sentence, as this package's begin; one that begins with a path keeps it as it is."""
    text = str(error)
    return UsageError(text[:1].upper() + text[1:] if text.startswith(("tensor ", "tensors ", "the ")) else text)


def reason(error: Exception) -> str:
    """An error's own words, on one line and without their full stop, to stand in brackets."""
    words = getattr(error, "strerror", None) or str(error)
    return " ".join(words.split())[:200].rstrip(".")
