"""What a caller did wrong, in one sentence."""


class UsageError(ValueError):
    """A call that cannot be answered; nothing was changed by it."""
