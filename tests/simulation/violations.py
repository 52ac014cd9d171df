"""The rules that a run can break: each broken one is an exception of its own."""


class ViolationError(AssertionError):
    """A run broke a rule."""


class AgreementError(ViolationError):
    """Two honest nodes decided different blocks at one height."""


class DoubleSignatureError(ViolationError):
    """An honest key signed two different messages in one slot."""


class UnjustifiedVoteError(ViolationError):
    """An honest node voted without the quorum that the vote must rest on."""


class LivenessError(ViolationError):
    """The network was whole for long enough, and yet something was not decided or not ended."""


class MissingEvidenceError(ViolationError):
    """A node had two contradicting messages before it and said nothing."""


class InvalidDecisionError(ViolationError):
    """A final block that isn't valid, that its leader never proposed, or whose commit is no quorum of signatures."""


class MoneyError(ViolationError):
    """The supply changed, or a learning round paid what it must not."""


class SlanderError(ViolationError):
    """An honest validator was punished for a double signature."""


class HonestRefusedError(ViolationError):
    """A machine refused what an honest node sent."""
