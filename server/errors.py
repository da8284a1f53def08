"""The error tree. `edge/signaling.py` maps it to HTTP in one function.

SightlineError
 +- SettingsError          a setting is unknown, of the wrong type or out of range  (start-up)
 +- ModelError             a model file cannot be used, and why
 |   +- UnknownModelError  nobody recognises its outputs: what was found, what would fit
 |   +- ParityError        the loaded engine disagrees with the reference answer
 +- StoreRefusedError      the database will never take what it was given
 +- RequestError           the caller is wrong: 4xx
 |   +- MalformedError         400  not what the route takes
 |   +- UnauthorizedError      401  no valid key or token
 |   +- ForbiddenError         403  known, but not entitled; or a foreign origin
 |   +- UnprocessableError     422  well formed, but cannot be served
 |   +- NotFoundError          404
 |   +- NotAcceptableError     406  nothing in the offer that we can send
 |   +- TimedOutError          408  the body came too slowly
 |   +- ConflictError          409  the name is taken
 |   +- NotLiveError           409  the stream's source is away
 |   +- StalePreconditionError 412  If-Match names another state
 |   +- TooLargeError          413
 |   +- UnsupportedTypeError   415
 |   +- NoPreconditionError    428  If-Match is wanted
 |   +- TooManyError           429  over a rate or a count of this caller
 +- RetryLaterError        carries when to come back; NotLiveError and TooManyError are such, too
     +- UnavailableError       503  full or draining

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


class StoreRefusedError(SightlineError):
    """The database will never take what it was given; trying again is of no use."""


class RetryLaterError(SightlineError):
    """What may be asked for again, and when."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class RequestError(SightlineError):
    """The caller is wrong."""

    status = 400
    title = "Bad request"

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says besides its body."""
        return {}


class MalformedError(RequestError):
    """Not what the route takes."""


class UnauthorizedError(RequestError):
    """No key or token, or one that is not valid (any more)."""

    status = 401
    title = "Sign-in needed"

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="sightline"'}


class ForbiddenError(RequestError):
    """The caller is known and not entitled, or comes from a page that is not ours."""

    status = 403
    title = "Forbidden"


class NotAcceptableError(RequestError):
    """The offer takes nothing that we could send."""

    status = 406
    title = "Not acceptable"


class ConflictError(RequestError):
    """The name is taken."""

    status = 409
    title = "Conflict"


class NotLiveError(RetryLaterError, ConflictError):
    """The stream is known, and its source is away."""

    title = "Not live"


class StalePreconditionError(RequestError):
    """If-Match names another state of the session than its own."""

    status = 412
    title = "Precondition failed"


class NoPreconditionError(RequestError):
    """The session has an ETag, and the request names none."""

    status = 428
    title = "Precondition required"


class TimedOutError(RequestError):
    """The body did not come within its deadline; the connection is closed behind the answer."""

    status = 408
    title = "Too slow"

    @property
    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class TooManyError(RetryLaterError, RequestError):
    """The caller is over a rate or a count of its own; others are served."""

    status = 429
    title = "Too many"


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


class UnavailableError(RetryLaterError):
    """Full or draining."""

    status = 503
    title = "Unavailable"
