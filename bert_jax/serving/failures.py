"""The exception for requests that are not answered, and its response."""

from typing import Any

from bert_jax.errors import plain

Place = tuple[str | int, ...]  # in a body, such as ('inputs', 3, 'context')
INVALID = 422


class Failure(Exception):
    """A request that is not answered, with the status and the reason."""

    def __init__(self, status: int, reason: str, place: Place = (), retry_after: float = 0.0):
        super().__init__(reason)
        self.status, self.place, self.retry_after = status, place, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The response as JSON values: the error in one line and, for invalid bodies, the field."""
        field = {"field": ".".join(map(str, self.place)) or "body"} if self.status == INVALID else {}
        return {"error": plain(str(self))} | field

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": f"{max(1, round(self.retry_after))}"} if self.retry_after else {}


def invalid(place: Place, reason: str) -> Failure:
    """Returns the failure of a body that is invalid at a place, which the message names."""
    return Failure(INVALID, f"{'.'.join(map(str, place)) or 'body'}: {reason}", place)
