"""The error tree. `signaling.py` maps it to HTTP in one function.

SightlineError
 +- SettingsError          a setting is unknown, of the wrong type or out of range  (start-up)
 +- ModelError             a model file cannot be used, and why
 |   +- UnknownModelError  nobody recognises its outputs: what was found, what would fit
 |   +- ParityError        the loaded engine disagrees with the reference answer
 +- RequestError           the caller is wrong: 4xx
 |   +- MalformedError         400  not what the route takes
 |   +- UnprocessableError     422  well formed, but cannot be served
 |   +- NotFoundError          404
 |   +- TooLargeError          413
 |   +- UnsupportedTypeError   415
 +- UnavailableError       503  full or draining; carries when to come back

Messages name the key, the value and the range, in one line, and never hold secrets.
"""


class SightlineError(Exception):
    """Base of everything this project raises on purpose."""


class SettingsError(SightlineError):
    """A setting is unknown, of the wrong type or out of range."""


class ModelError(SightlineError):
    """A model file cannot be used; the message says why."""


class UnknownModelError(ModelError):
    """No head recognises the model's outputs; the message lists them and what would fit."""


class ParityError(ModelError):
    """The engine's answer differs from the reference by more than is allowed."""


class RequestError(SightlineError):
    """The caller is wrong."""

    status = 400
    title = "Bad request"


class MalformedError(RequestError):
    """Not what the route takes."""


class UnprocessableError(RequestError):
    """Well formed, but it cannot be served."""

    status = 422
    title = "Cannot be served"


class NotFoundError(RequestError):
    """No such thing, or not for this caller."""

    status = 404
    title = "Not found"


class TooLargeError(RequestError):
    """The body is over the limit."""

    status = 413
    title = "Too large"


class UnsupportedTypeError(RequestError):
    """The body has another content type."""

    status = 415
    title = "Unsupported media type"


class UnavailableError(SightlineError):
    """Full or draining."""

    status = 503
    title = "Unavailable"

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
