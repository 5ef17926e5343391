"""The page on which people vote: served on this machine alone, behind a secret in its address.

Raters see two pictures of one prompt side by side and do not learn which checkpoint drew which: addresses hold positions in the
rater's own schedule, pictures are encoded anew, attention checks look like any other pair. Every vote is in the log, on the disk,
before the page goes on, so that a crash loses nothing (`evals.ballots`).

Nothing of a request is trusted: the secret is compared in constant time, the host must be this machine (a name that resolves to
it is somebody else's page), a body is a small JSON object with the expected keys, and a vote is for the pair that is next.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import jinja2
import numpy as np

import prompts
from evals import ballots, layout
from evals.ballots import CHOICES, NOISE, Choice, Comparison, Log
from evals.rgb import as_png

LOOPBACK = "127.0.0.1"
BODY = 1000
"""Bytes that a request may have: a name and a choice take a tenth."""
RATERS = 200
"""Names in one log; whoever needs more has a program that makes them up."""
SECONDS = 30
"""How long a connection may be silent."""
_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?")
"""Any port: behind a tunnel the browser's is not this one."""


class Refused(Exception):
    """A request that is answered with a sentence; `state` is where the rater is, if that is what the page got wrong."""

    def __init__(self, status: HTTPStatus, sentence: str, state: Mapping[str, Any] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.state = status, state


class Booth:
    """What the page may ask for; safe to use from several threads."""

    def __init__(self, log: Log, folders: Mapping[str, Path]) -> None:
        """Serve a log.

        Args:
            log: open for voting.
            folders: of the pictures of "A" and "B".
        """
        self.log, self.folders = log, folders
        names = log.comparison.prompts
        self._texts = {name: {p.id: p.text for p in prompts.load(name)} for name in names}
        self._index = layout.Index()
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}  # by key
        for rater in log.raters():
            self._names[_key(rater)] = rater

    def join(self, rater: str) -> dict[str, Any]:
        """Where a rater is: what is next, or that all is done."""
        with self._lock:
            self._admit(rater)
            return self._state(rater)

    def vote(self, rater: str, position: int, choice: Choice) -> dict[str, Any]:
        """Take a vote on what the rater is shown at a position, and say what is next."""
        with self._lock:
            self._admit(rater)
            self._refuse_other(rater, position, self.log.count(rater), "is not what you are asked now")
            if position >= len(ballots.schedule(self.log.comparison, rater)):
                raise Refused(HTTPStatus.CONFLICT, "all pairs have your vote", self._state(rater))
            self.log.vote(rater, choice)
            return self._state(rater)

    def undo(self, rater: str, position: int) -> dict[str, Any]:
        """Take back the last vote, which is at that position, and show its pair again."""
        with self._lock:
            self._admit(rater)
            self._refuse_other(rater, position, self.log.count(rater) - 1, "is not your last vote")
            if position < 0:
                raise Refused(HTTPStatus.CONFLICT, "there is no vote to take back", self._state(rater))
            self.log.undo(rater)
            return self._state(rater)

    def picture(self, key: str, position: int, side: str) -> bytes:
        """The PNG that a rater sees at a position on a side."""
        with self._lock:
            rater = self._names.get(key)
        comparison = self.log.comparison
        shown = ballots.schedule(comparison, rater) if rater is not None else ()
        if position >= len(shown):
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such picture")
        pair = comparison.pairs[shown[position].pair]
        what = shown[position].left if side == "left" else shown[position].right
        whose = what.removesuffix(NOISE)
        path = self._index.path_of(self.folders[whose], pair.prompt_set, pair.prompt_id, pair.image)
        rgb = ballots.open_picture(path)
        if ballots.picture_hash(rgb) != (pair.a if whose == "A" else pair.b):
            raise ValueError(f"{path} is another picture than when the voting began: start the server again")
        return as_png(np.asarray(ballots.under_noise(rgb) if what.endswith(NOISE) else rgb))

    def _admit(self, rater: str) -> None:
        if _key(rater) not in self._names and len(self._names) >= RATERS:
            raise Refused(HTTPStatus.CONFLICT, f"there are {RATERS} raters already")
        self._names[_key(rater)] = rater

    def _refuse_other(self, rater: str, position: int, expected: int, sentence: str) -> None:
        """A page that is behind, as a second one of the same rater is, is told where the rater is."""
        if position != expected:
            raise Refused(HTTPStatus.CONFLICT, f"number {position + 1} {sentence}", self._state(rater))

    def _state(self, rater: str) -> dict[str, Any]:
        shown = ballots.schedule(self.log.comparison, rater)
        position = self.log.count(rater)
        state = {"rater": rater, "position": position, "total": len(shown)}
        if position == len(shown):
            return state
        pair = self.log.comparison.pairs[shown[position].pair]
        ahead = range(position, min(position + 2, len(shown)))
        addresses = [[f"picture/{_key(rater)}/{i}/{side}" for side in ("left", "right")] for i in ahead]
        text = self._texts[pair.prompt_set][pair.prompt_id]
        return {
            **state,
            "text": text,
            "pictures": addresses[0],
            "next": addresses[1] if addresses[1:] else [],
        }


def _key(rater: str) -> str:
    """A rater's name in an address."""
    return hashlib.sha256(rater.encode()).hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------- HTTP


class Server(ThreadingHTTPServer):
    """The page of one booth on loopback."""

    daemon_threads = True
    allow_reuse_port = False  # or a second server could take half of the requests

    def __init__(self, booth: Booth, port: int = 0) -> None:
        """Take the port; 0 is any free one.

        Raises:
            ValueError: it is taken, or not this user's to take.
        """
        try:
            super().__init__((LOOPBACK, port), Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            taken = "taken" if error.errno == errno.EADDRINUSE else "not allowed"
            raise ValueError(f"--port {port} is {taken}: choose another, or 0 for any free one") from error
        self.booth, self.secret = booth, secrets.token_urlsafe(24)

    @property
    def address(self) -> str:
        """What a rater opens."""
        return f"http://{LOOPBACK}:{self.server_address[1]}/{self.secret}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; everything else is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request. Anything that is not exactly as expected is refused before it is looked at further."""

    timeout = SECONDS
    server_version, sys_version = "votes", ""

    @property
    def _server(self) -> Server:
        return cast(Server, self.server)

    def do_GET(self) -> None:
        """The page, or a picture."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """A name, a vote, or its undoing."""
        self._answer(self._post)

    def _answer(self, respond: Callable[[list[str]], None]) -> None:
        try:
            respond(self._path())
        except Refused as refusal:
            told = {"error": str(refusal)} | ({"state": refusal.state} if refusal.state else {})
            self._send_json(refusal.status, told)
        except (ValueError, OSError) as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            print(f"error: {error}", file=sys.stderr)
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})

    def _path(self) -> list[str]:
        """The parts of the address after the secret."""
        if len(hosts := self.headers.get_all("Host", [])) != 1 or not _HOST.fullmatch(hosts[0]):
            raise Refused(HTTPStatus.FORBIDDEN, "this page is for this machine alone")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{hosts[0]}":
            raise Refused(HTTPStatus.FORBIDDEN, "another page asks: only this one may")
        secret, *parts = self.path.partition("?")[0].removeprefix("/").split("/")
        if not hmac.compare_digest(secret.encode(), self._server.secret.encode()):
            raise Refused(
                HTTPStatus.FORBIDDEN, "the address is not the one that the server printed when it started"
            )
        return parts

    def _get(self, parts: list[str]) -> None:
        if parts == [""]:
            self._send_page()
        elif (
            len(parts) == 4
            and parts[0] == "picture"
            and re.fullmatch(r"[0-9]{1,9}", parts[2])
            and parts[3] in ("left", "right")
        ):
            content = self._server.booth.picture(parts[1], int(parts[2]), parts[3])
            self._send(HTTPStatus.OK, "image/png", content, **{"Cache-Control": "private, max-age=3600"})
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self, parts: list[str]) -> None:
        booth, body = self._server.booth, self._body()
        if parts == ["join"] and body.keys() == {"rater"}:
            state = booth.join(_rater(body))
            _say(f"{state['rater']} is here, {state['position']} of {state['total']} done")
        elif parts == ["vote"] and body.keys() == {"rater", "position", "choice"}:
            if body["choice"] not in CHOICES:
                raise Refused(HTTPStatus.BAD_REQUEST, f"choice must be one of {', '.join(CHOICES)}")
            state = booth.vote(_rater(body), _position(body), body["choice"])
            if state["position"] == state["total"]:
                _say(f"{state['rater']} is done")
        elif parts == ["undo"] and body.keys() == {"rater", "position"}:
            state = booth.undo(_rater(body), _position(body))
        elif parts in (["join"], ["vote"], ["undo"]):
            raise Refused(HTTPStatus.BAD_REQUEST, f"these are not the keys of {parts[0]}")
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here")
        self._send_json(HTTPStatus.OK, state)

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,9}", length) or "Transfer-Encoding" in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "a request needs a length")
        if int(length) > BODY:
            self.rfile.read(min(int(length), 100 * BODY))  # or the client never reads why
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {BODY} bytes")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request is application/json")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "a request is JSON") from error
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "a request is a JSON object")
        return body

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        page = _template().render(nonce=nonce)
        self._send(
            HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), **{"Content-Security-Policy": policy}
        )

    def _send_json(self, status: HTTPStatus, told: Mapping[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(told).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes, **headers: str) -> None:
        self.send_response(status)
        sent = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
            **headers,
        }
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: addresses hold the secret."""


def _rater(body: Mapping[str, Any]) -> str:
    try:
        return ballots.rater_name(body["rater"])
    except ValueError as error:
        raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from error


def _position(body: Mapping[str, Any]) -> int:
    position = body["position"]
    if type(position) is not int or not 0 <= position < 10**9:
        raise Refused(HTTPStatus.BAD_REQUEST, "position must be a whole number")
    return position


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("vote.html.j2")


def serve(comparison: Comparison, folders: Sequence[Path], log_path: Path, port: int) -> None:
    """Serve the page until the process is told to stop (Ctrl-C).

    Args:
        comparison: what is voted on.
        folders: of A's and B's pictures.
        log_path: the log, which goes on where it was.
        port: 0 for any free one.

    Raises:
        ValueError: the log is another comparison's, damaged or in use, or the port is taken.
    """
    log = Log(log_path, comparison)
    try:
        if log.repaired:
            _say(f"{log_path} ended in half a line, left by a crash: removed, it was never acknowledged")
        with Server(Booth(log, dict(zip("AB", folders, strict=True))), port) as server:
            _say(
                f"{len(comparison.pairs)} pairs of {', '.join(comparison.prompts)}, and {comparison.checks} attention checks for each "
                f"rater; votes go to {log_path}; Ctrl-C ends it; raters open this, each with a name of their own:"
            )
            print(server.address, flush=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                _say("")
    finally:
        log.close()
