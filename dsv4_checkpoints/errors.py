"""What is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as it is; the message is one sentence for the user."""


def shown(value: object) -> str:
    """Return `value` as it can be printed: escaped, and short where a damaged file has megabytes of it."""
    try:
        text = repr(value)
    except ValueError:  # an integer with thousands of digits
        return "a number too large to print"
    return text if len(text) <= 200 else f"{text[:180]}...{text[-1]}"
