"""Errors about a question to a node; their message is one line for the person who asked.

Here and not beside their raisers, so that the command line can name them without loading what raises them.
"""

from typing import Any


class InspectionError(Exception):
    """What was asked for isn't there, or is not named clearly. The message says what there is instead."""


class ParameterError(Exception):
    """Parameters that a method doesn't take. The message says which, and which it takes."""


class UnreachableError(Exception):
    """No node answers. The message says what to do."""


class RpcError(Exception):
    """The node's answer is an error.

    Attributes:
        code: JSON-RPC's, or one of `server`'s.
        data: details, such as the reason for which a transaction was refused.
    """

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        self.code = code
        self.data = data
        super().__init__(message)
