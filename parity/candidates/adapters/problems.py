"""What a candidate can do wrong other than compute wrongly; each is one sentence, none is an error of the harness."""


class CandidateProblem(Exception):
    """Something that a candidate did in its own process; the message is one sentence."""


class Raised(CandidateProblem):
    """It raised an exception."""


class LacksName(Raised):
    """A file of it uses a name of `typing` or the like that it does not import."""

    def __init__(self, sentence: str, file: str, name: str):
        super().__init__(sentence)
        self.file, self.name = file, name


class NotOffered(CandidateProblem):
    """It has no such thing: a gap in what can be judged, not a failure."""


class Died(CandidateProblem):
    """Its process ended, or answered nothing that can be read."""


class Hung(CandidateProblem):
    """It took longer than the time limit."""


class AteMemory(CandidateProblem):
    """It took more than the memory limit."""


class WroteOutside(CandidateProblem):
    """It tried to reach beyond its own folder: files, the network, other programs."""


NEEDS_METAL = "needs Metal, which this machine does not have"


class NeedsDevice(NotOffered):
    """It asks for a device that this machine has not."""


class MissingImports(CandidateProblem):
    """Modules that it imports are not installed; `names` lists all of them."""

    def __init__(self, sentence: str, names: list[str]):
        super().__init__(sentence)
        self.names = names
