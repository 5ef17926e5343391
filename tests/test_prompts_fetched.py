"""Files of others: from a folder, from a cache, from a server on this machine; and every way in which they cannot be had."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prompts import fetched
from prompts.fetched import File, cache_folder, github, made_once

CONTENT = b"a cat\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /right, half of it at /cut, something else at /wrong."""

    requests: list[str]

    def file(self, path: str, sha256: str = SHA256) -> File:
        return File(f"http://127.0.0.1:{self.server_port}/{path}", {"set/file.txt": sha256})


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        time.sleep(0.2)  # long enough for others to come
        body = b"<html>log in</html>" if self.path == "/wrong" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, no folder, and no proxy between here and here."""
    monkeypatch.delenv("T2I_PROMPTS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "t2i-prompts"


def refusal(file: File) -> str:
    """The message with which a file is refused: one sentence."""
    with pytest.raises(ValueError) as caught:
        file.path()
    message = str(caught.value)
    assert "\n" not in message
    return message


def kept(cache: Path) -> list[str]:
    """What is in the cache, but for locks."""
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


# the network


def test_a_file_is_fetched_once(server: Server, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = server.file("right")
    assert file.path() == file.path() == cache / "set" / "file.txt"
    assert file.path().read_bytes() == CONTENT
    assert server.requests == ["/right"]
    assert capsys.readouterr().err == f"fetching {file.url}\n"


def test_of_several_that_need_it_one_fetches_and_the_others_wait(server: Server, cache: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: server.file("right").path().read_bytes(), range(6)))
    assert paths == [CONTENT] * 6
    assert server.requests == ["/right"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("cut", f"broke off after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("wrong", "is not the file that is expected (SHA-256 "),
        ("missing", "cannot be fetched (the server answers 404 Not Found)"),
    ],
)
def test_what_does_not_arrive_whole_and_right_leaves_nothing(
    server: Server, cache: Path, path: str, says: str
) -> None:
    file = server.file(path)
    message = refusal(file)
    assert message.startswith(f"{file.url} ") and says in message
    assert message.endswith(
        "a copy of your own is read as set/file.txt below a folder that T2I_PROMPTS_DIR names"
    )
    assert kept(cache) == []
    assert server.file("right").path().read_bytes() == CONTENT


def test_no_network(cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        file = File(f"http://127.0.0.1:{taken.getsockname()[1]}/x", {"set/file.txt": SHA256})
        message = refusal(file)
    assert message.startswith(f"{file.url} cannot be fetched (") and "refused" in message
    assert "T2I_PROMPTS_DIR" in message


def test_a_host_that_does_not_answer_is_waited_for_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def wait(url: str, **_: object) -> None:
        asked.append(url)
        raise TimeoutError("timed out")

    monkeypatch.setattr(fetched, "urlopen", wait)
    monkeypatch.setattr(fetched, "_silent", set())
    assert "cannot be fetched (timed out)" in refusal(File("http://far/1", {"1": SHA256}))
    assert "cannot be fetched (far did not answer before)" in refusal(File("http://far/2", {"2": SHA256}))
    assert "cannot be fetched (timed out)" in refusal(File("http://other/2", {"2": SHA256}))
    assert asked == ["http://far/1", "http://other/2"]


def test_a_damaged_file_in_the_cache_is_named(server: Server, cache: Path) -> None:
    path = server.file("right").path()
    path.write_bytes(CONTENT[:100])
    message = refusal(server.file("right"))
    assert message.startswith(f"{path} is not the file that is expected")
    assert message.endswith("or was not copied to its end: delete it, and it is fetched again")


def test_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    assert "cannot be written (not a directory): XDG_CACHE_HOME names another folder" in refusal(
        server.file("right")
    )


def test_the_cache_is_where_caches_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "t2i-prompts"


# the folder


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(tmp_path / "mine"))
    (tmp_path / "mine" / "set").mkdir(parents=True)
    return tmp_path / "mine"


def test_a_file_of_the_folder_is_read_where_it_lies(server: Server, cache: Path, folder: Path) -> None:
    (folder / "set" / "file.txt").write_bytes(CONTENT)
    assert server.file("right").path() == folder / "set" / "file.txt"
    assert (server.requests, kept(cache)) == ([], [])


def test_a_file_may_lie_in_the_folder_under_another_name_or_without_its_repeated_lines(folder: Path) -> None:
    file = File(
        "http://127.0.0.1/x", {"set/file.txt": SHA256, "set/once.txt": hashlib.sha256(b"a cat\n").hexdigest()}
    )
    (folder / "set" / "once.txt").write_bytes(b"a cat\n")
    assert file.path() == folder / "set" / "once.txt"
    (folder / "set" / "once.txt").write_bytes(CONTENT)  # each name has the SHA-256 of its own
    assert refusal(file).startswith(f"{folder / 'set' / 'once.txt'} is not the file that is expected")


def test_a_folder_without_the_file(server: Server, folder: Path) -> None:
    file = server.file("right")
    expected = f"T2I_PROMPTS_DIR is {folder}, in which there is no set/file.txt: put {file.url} there, "
    assert refusal(file) == expected + "or unset the variable, and it is fetched"
    assert server.requests == []


def test_a_file_of_the_folder_that_is_another(server: Server, folder: Path) -> None:
    path = folder / "set" / "file.txt"
    path.write_bytes(CONTENT[:-1])
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()
    assert refusal(server.file("right")) == (
        f"{path} is not the file that is expected (SHA-256 {found[:12]} instead of {SHA256[:12]}), or was not copied to its end: "
        f"the right one is {server.file('right').url}"
    )


# whole or not at all


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".made.part").mkdir()
    (tmp_path / ".made.part" / "half").write_text("half")

    def make(part: Path) -> None:
        part.mkdir()
        (part / "whole").write_text("whole")

    assert [path.name for path in made_once(tmp_path / "made", make).iterdir()] == ["whole"]
    assert not (tmp_path / ".made.part").exists()


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def make(part: Path) -> None:
        part.mkdir()
        (part / "half").write_text("half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        made_once(tmp_path / "made", make)
    assert [path.name for path in tmp_path.iterdir()] == [".made.lock"]


def test_a_file_of_a_repository() -> None:
    assert (
        github("a/b", "c0ffee", "d/e.txt", {}).url == "https://raw.githubusercontent.com/a/b/c0ffee/d/e.txt"
    )
