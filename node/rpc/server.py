"""JSON-RPC 2.0 over HTTP for people and programs on this machine, and `/livez`, `/readyz`, `/metrics`.

    POST /   {"jsonrpc": "2.0", "id": 1, "method": "block", "params": {"reference": "latest"}}

Parameters go by name. There is no login: it listens on loopback unless told otherwise, and refuses what a web page of
another origin could send (DNS rebinding, cross-site requests). What belongs here: HTTP, limits, errors. The methods are
in `calls` and `methods`.
"""

import ipaddress
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from bflnode.consensus.rejection import Rejection
from bflnode.node.home import HomeError
from bflnode.node.node import Node
from bflnode.storage.errors import StorageError

from .methods import RpcMethods, UnknownMethodError
from .metrics import CONTENT_TYPE, metrics_text
from .refusals import InspectionError, ParameterError

_http_logger = logging.getLogger(f"{__name__}.http")
_http_logger.setLevel(logging.WARNING)
"""Hypercorn's; below warnings it only greets."""

MAX_REQUEST_BYTES = 320 * 1024
"""The largest AGGREGATE has 128 KiB, twice as many hex digits, and the request around it."""

KEEP_ALIVE_S = 30
"""An idle connection is closed after this long; the command line uses one for a few requests."""

REQUEST_TIMEOUT_S = 30.0
"""A request that has begun must be complete in this time."""

MAX_CONNECTIONS = 64
"""Open at the same time; more are closed at once. Each is a descriptor that agreement and the disk don't have."""

BACKLOG = 100

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
"""JSON-RPC 2.0's own codes."""
NOT_FOUND, REFUSED, STORAGE_FAILED = -32001, -32002, -32003
"""Ours: what was asked for isn't there; a transaction was refused (`data.reason`); the disk is at fault."""


class RequestError(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, code: int, message: str, data: dict[str, Any] | None = None) -> None:
        self.code = code
        self.data = data
        super().__init__(message)


async def serve(node: Node, *, task_status: "trio.TaskStatus[str]" = trio.TASK_STATUS_IGNORED) -> None:
    """Answer until cancelled. Reports the URL it listens on once it does; port 0 takes a free one.

    Raises:
        HomeError: the address can't be listened on.
    """
    rpc = node.configuration.rpc
    listener = _listen(rpc.host, rpc.port)
    port = listener.getsockname()[1]
    address = f"http://[{rpc.host}]:{port}" if ":" in rpc.host else f"http://{rpc.host}:{port}"
    config = Config()
    config.errorlog = _http_logger
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.include_server_header = False
    connections = Connections(make_application(RpcMethods(node, address)), config)
    accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    task_status.started(address)
    async with trio.open_nursery() as nursery:
        try:
            await trio.serve_listeners(connections.serve, [accepting], handler_nursery=nursery)
        finally:
            connections.cut()


class Connections:
    """Open connections: bounded in number, apart from each other, and cut when the node stops.

    The server of the library has no bound, ends with the first fault in a connection, and waits on the way out for
    clients that don't read.
    """

    def __init__(self, application: Starlette, config: Config) -> None:
        # Hypercorn describes what an application is called with more narrowly than ASGI does.
        narrow: Any = application
        self._application = ASGIWrapper(narrow)
        self._config = config
        self._context = WorkerContext(None)
        self._open: set[trio.SocketStream] = set()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection until either side ends it."""
        if len(self._open) >= MAX_CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        self._open.add(stream)
        plain: Any = stream  # hypercorn names the encrypted stream only
        try:
            await _Connection(self._application, self._config, self._context, ConnectionState(LifespanState({})), plain)
        except Exception:  # the daemon's edge: bytes of a client met a bug of the library
            # No warning: a page in somebody's browser could fill the log with them.
            _http_logger.debug("a connection ended by a fault", exc_info=True)
        finally:
            self._open.discard(stream)

    def cut(self) -> None:
        """Close all of them now: the library sends to the end, for as long as that takes."""
        for stream in self._open:
            stream.socket.close()


class _Http1(H11Protocol):
    """HTTP/1.1, one request after the other.

    The library would go on with HTTP/2 where a client wants it: a hundred requests at once, whose answers wait in
    memory for as long as nobody reads them. One connection held 120 MB.
    """

    async def _check_protocol(self, event: object) -> None:
        """Answer who offers HTTP/2 as if he hadn't."""


class _Connection(TCPServer):
    """A connection of HTTP/1.1 that ends when its client has gone and has its answers.

    The library's waits for more requests then, until the time of an idle connection is over: sixty-four commands in a
    row would occupy all places for half a minute.
    """

    _has_ended = False

    async def _read_data(self) -> None:
        chosen = self.protocol
        chosen.protocol = _Http1(
            *(chosen.app, chosen.config, chosen.context, chosen.task_group, chosen.state),
            *(chosen.ssl, chosen.client, chosen.server, chosen.send),
        )
        await super()._read_data()
        self._has_ended = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        """Send what the protocol wants sent; after the end it doesn't become idle again."""
        if not (self._has_ended and isinstance(event, Updated)):
            await super().protocol_send(event)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(target)
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise HomeError(
            f"can't listen for RPC on {host}:{port}: {error.strerror}; choose another with --rpc-port or "
            "rpc.port (0 takes a free one)"
        ) from error
    return listener


def make_application(methods: RpcMethods) -> Starlette:
    """The web application: JSON-RPC, probes and metrics."""

    async def live(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(_: Request) -> Response:
        reasons = methods.unready_reasons()
        return PlainTextResponse("\n".join(reasons or ["ok"]) + "\n", status_code=503 if reasons else 200)

    async def metrics(_: Request) -> Response:
        return Response(metrics_text(methods.summary()), media_type=CONTENT_TYPE)

    async def call(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return PlainTextResponse("send application/json\n", status_code=415)
        try:
            with trio.fail_after(REQUEST_TIMEOUT_S):
                body = await _read_body(request)
        except trio.TooSlowError:
            return PlainTextResponse(f"the request didn't come in {REQUEST_TIMEOUT_S:g} s\n", status_code=408)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return PlainTextResponse(f"a request has at most {MAX_REQUEST_BYTES} bytes\n", status_code=413)
        answer = await answer_request(methods.call, body)
        return Response(status_code=204) if answer is None else Response(encoded(answer), media_type="application/json")

    return Starlette(
        routes=[
            Route("/", _guarded(call), methods=["POST"]),
            Route("/livez", _guarded(live)),
            Route("/readyz", _guarded(ready)),
            Route("/metrics", _guarded(metrics)),
        ]
    )


def _guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Refuse requests that a browser sends on behalf of a page from elsewhere."""

    async def guarded(request: Request) -> Response:
        fault = browser_fault(request.headers.get("host", ""), request.headers.get("origin"))
        if fault is not None:
            return PlainTextResponse(f"{fault}\n", status_code=403)
        return await handler(request)

    return guarded


def browser_fault(host: str, origin: str | None) -> str | None:
    """Why a request could come from a page of another site, or None.

    A name other than localhost may be one that an attacker's DNS points at this machine; numbers can't be rebound.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets without an address of IPv6
        name = ""
    if name != "localhost" and not _is_address(name):
        return f"host {host[:80]!r} is not an address of this machine: use an IP address or localhost"
    if origin is not None and origin != f"http://{host}":
        return f"requests from pages of {origin[:80]!r} are refused"
    return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _read_body(request: Request) -> bytes | None:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_REQUEST_BYTES:
            return None
    return bytes(body)


async def answer_request(call: Callable[[str, dict[str, Any]], Awaitable[Any]], body: bytes) -> dict[str, Any] | None:
    """Answer one JSON-RPC request; None for a notification, which gets no answer."""
    identifier: Any = None
    try:
        request = _parse(body)
        identifier = _identifier(request)
        method, params = _checked(request)
        result = await _called(call, method, params)
    except RequestError as error:
        details = {"code": error.code, "message": str(error)}
        if error.data is not None:
            details["data"] = error.data
        return {"jsonrpc": "2.0", "id": identifier, "error": details}
    return {"jsonrpc": "2.0", "id": identifier, "result": result} if "id" in request else None


async def _called(call: Callable[[str, dict[str, Any]], Awaitable[Any]], method: str, params: dict[str, Any]) -> Any:
    try:
        return await call(method, params)
    except UnknownMethodError as error:
        raise RequestError(METHOD_NOT_FOUND, str(error)) from error
    except ParameterError as error:
        raise RequestError(INVALID_PARAMS, f"{method}: {error}") from error
    except InspectionError as error:
        raise RequestError(NOT_FOUND, str(error)) from error
    except Rejection as rejection:
        raise RequestError(REFUSED, str(rejection), {"reason": rejection.reason.value}) from rejection
    except StorageError as error:
        raise RequestError(STORAGE_FAILED, str(error)) from error


def _parse(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(PARSE_ERROR, f"the request is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise RequestError(INVALID_REQUEST, "send one request as a JSON object; batches are not taken")
    return request


def encoded(answer: dict[str, Any]) -> bytes:
    """An answer as ASCII JSON: what a caller wrote may hold half a surrogate pair, which UTF-8 can't carry."""
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode("ascii")


def _identifier(request: dict[str, Any]) -> str | int | None:
    """The id of a request, which its answer repeats; one of another type is answered with null."""
    identifier = request.get("id")
    if identifier is not None and not isinstance(identifier, str | int):
        raise RequestError(INVALID_REQUEST, "the id of a request is text or an integer")
    return identifier


def _checked(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    method, params = request.get("method"), request.get("params", {})
    if request.get("jsonrpc") != "2.0" or not isinstance(method, str):
        raise RequestError(INVALID_REQUEST, 'a request has "jsonrpc": "2.0" and the name of a method')
    if not isinstance(params, dict):
        raise RequestError(INVALID_PARAMS, "parameters are given by name, in an object")
    return method, params
