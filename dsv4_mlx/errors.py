"""What a caller did wrong, in one sentence."""


class UsageError(ValueError):
    """A call that cannot be answered; nothing was changed by it."""


def as_usage_error(error: ValueError) -> UsageError:
    """The same sentence, as this package's begin."""
    text = str(error)
    return UsageError(text[:1].upper() + text[1:])
