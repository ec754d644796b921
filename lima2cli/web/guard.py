"""Who is answered: programs and pages of this machine that have the token, or all programs where there is none.

The server listens on the loopback. Other users of the machine can reach it there, and so can any web page that the
user's browser shows: by a name that leads to 127.0.0.1 (DNS rebinding), or by requests to another site. The first lack
the token; of the others `Host`, `Origin` and `Sec-Fetch-Site` tell.
"""

import hmac
from collections.abc import Mapping

from tornado.httputil import HTTPServerRequest

LOOPBACK = "127.0.0.1"

PUBLIC = ("/static/", "/favicon.ico")
"""Beginnings of paths that need no token: files of libraries, which every page loads by plain links."""

BEARER = "Bearer "


class Guard:
    """The rules of one server. ``token``: the secret, None = no token is asked for; ``port``: where it listens."""

    def __init__(self, token: str | None, port: int) -> None:
        self._token = None if token is None else token.encode()
        self._hosts = {f"{name}:{port}" for name in (LOOPBACK, "localhost")}
        self._origins = {f"http://{host}" for host in self._hosts}

    def refusal(self, request: HTTPServerRequest) -> tuple[int, str] | None:
        """Return status and reason for which a request is refused; None where it is answered."""
        if request.host.lower() not in self._hosts:
            return 403, "the host of the request is not this server"
        if self._foreign(request.headers, request.method == "GET"):
            return 403, "requests of other sites are refused"
        if not request.path.startswith(PUBLIC) and not self._knows(request):
            return 401, "the token is missing or wrong"
        return None

    def _foreign(self, headers: Mapping[str, str], reads: bool) -> bool:
        """Return whether a page of another site asks. Links that a user follows are allowed: they need the token."""
        if "Origin" in headers and headers["Origin"].lower() not in self._origins:
            return True
        if headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none"):
            return False
        if self._token is None:
            return True
        follows = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        return not (reads and follows)

    def _knows(self, request: HTTPServerRequest) -> bool:
        if self._token is None:
            return True
        token = self._token
        given = list(request.query_arguments.get("token", []))
        words = request.headers.get("Authorization", "")
        if words.startswith(BEARER):
            given.append(words.removeprefix(BEARER).strip().encode())
        return any(hmac.compare_digest(one, token) for one in given)
