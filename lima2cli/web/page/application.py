"""An application of Bokeh behind the guard of the server, next to its routes."""

import logging
import secrets
from collections.abc import Callable
from typing import Any

from bokeh.application import Application
from bokeh.application.handlers.function import FunctionHandler
from bokeh.document import Document
from bokeh.server.tornado import BokehTornado
from tornado.ioloop import IOLoop

from lima2cli.runs.directory import LATEST
from lima2cli.web.guard import LOOPBACK
from lima2cli.web.page.session import Page
from lima2cli.web.routes import Service
from lima2cli.web.server import SETTINGS, Guarded, patterns

LONGEST_MESSAGE = 4 << 20
"""Maximal bytes of a message of a browser."""


class PageApplication(Guarded, BokehTornado):  # type: ignore[misc]  # of a library without types
    """An application of Bokeh that lets in whom the guard lets in."""


def page_application(service: Service, port: int) -> tuple[PageApplication, Callable[[], None]]:
    """Return the application, which has begun its work in the running loop, and what ends it."""

    def make(document: Document) -> None:
        request = document.session_context.request if document.session_context else None
        names = request.arguments.get("run", []) if request is not None else []
        Page(service, document, names[0].decode(errors="replace") if names else LATEST)

    logging.getLogger("bokeh").setLevel(logging.ERROR)
    applications: Any = {"/": Application(FunctionHandler(make))}
    application = PageApplication(
        applications,
        extra_patterns=patterns(service),
        extra_websocket_origins=[f"{name}:{port}" for name in (LOOPBACK, "localhost")],
        secret_key=secrets.token_bytes(32),
        sign_sessions=True,
        use_index=False,
        ico_path="none",
        include_headers=[],
        include_cookies=[],
        websocket_max_message_size_bytes=LONGEST_MESSAGE,
        **SETTINGS,
    )
    application.initialize(IOLoop.current())
    application.start()
    return application, application.stop
