"""Errors that a client sees, in OpenAI's shape."""

from ..errors import JanusError


class RequestRefused(JanusError):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP, 400 to 599.
        param: the field that is wrong, if one is.
        code: a word for programs.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict:
        return error_body(str(self), self.status, self.param, self.code)


KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict:
    """{"error": {message, type, param, code}}."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
