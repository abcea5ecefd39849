"""What a client raises instead of an answer.

ClientError
|- Rejected         4xx: the picture or the request is at fault, and sending it again would not help
|- Refused          429: the service has too much waiting, and says when to come back
|- TimeUp           504, or this client's own clock
|- ServiceFailed    5xx: a fault of the service, or no warm engine (503)
|- Unreachable      no connection, or it broke before anything was answered
|- BadAnswer        an answer, but not one of this service
`- Unreadable       the picture's file cannot be read here; nothing was sent
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of them.

    Attributes:
        code: stable machine-readable name: `error.code` of the answer, or one of this module's own.
        message: says what to do.
        status: HTTP status, None where there was no answer.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(code, message, status)
        self.code = code
        self.message = message
        self.status = status

    def __str__(self) -> str:
        return self.message


class Rejected(ClientError):
    """The picture or the request is at fault."""


class Refused(ClientError):
    """Announced: there will be room in `retry_after_s`."""

    def __init__(self, code: str, message: str, status: int | None = 429, retry_after_s: float = 1.0) -> None:
        super().__init__(code, message, status)
        self.args = (code, message, status, retry_after_s)
        self.retry_after_s = retry_after_s


class TimeUp(ClientError):
    """No answer within the time this request was given."""


class ServiceFailed(ClientError):
    """The service could not do it."""


class Unreachable(ClientError):
    """Nobody answered."""


class BadAnswer(ClientError):
    """Somebody else answered, or half of an answer came."""


class Unreadable(ClientError):
    """Nothing was sent."""
