"""Asking a running node: JSON-RPC over HTTP on this machine."""

import ssl
from types import TracebackType
from typing import Any, Self

import httpx

from .refusals import RpcError, UnreachableError

TIMEOUT_S = 10.0
"""A node that is busy with a large block answers within a second; one that takes longer is stuck."""

CONNECT_TIMEOUT_S = 3.0


class RpcClient:
    """A connection to one node."""

    def __init__(self, url: str) -> None:
        """Prepare to ask the node at `url`; nothing is sent yet."""
        self._url = url
        timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        # RPC is plain HTTP: a context that trusts nobody spares the 60 ms that loading the system's certificates takes.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Loopback traffic must not go through a proxy that the environment names.
        self._http = httpx.Client(timeout=timeout, verify=context, trust_env=False)

    def call(self, method: str, *, timeout_s: float | None = TIMEOUT_S, **params: Any) -> Any:
        """Ask a method.

        Args:
            method: its name.
            timeout_s: longest wait for the answer; None waits as long as the node works on it.
            params: by name.

        Raises:
            UnreachableError: no answer.
            RpcError: the answer is an error.
        """
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            response = self._http.post(self._url, json=request, timeout=timeout)
            answer = response.json() if response.status_code == httpx.codes.OK else None
        except httpx.TimeoutException as error:
            raise UnreachableError(
                f"the node at {self._url} did not answer in time: it may be busy, look at its log"
            ) from error
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            raise UnreachableError(
                f"the node at {self._url} can't be reached ({error}): see whether it runs with `bflnode status`"
            ) from error
        match answer:
            case {"error": {"code": int(code), "message": str(message), **details}}:
                raise RpcError(code, message, details.get("data"))
            case {"result": result}:
                return result
        text = response.text.strip()[:200]
        raise UnreachableError(f"{self._url} answers {response.status_code} ({text}): is that a bflnode?")

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
