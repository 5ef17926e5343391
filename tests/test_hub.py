"""What is said where something on the hub cannot be had; no hub is reached."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from evals.architectures import MAINTAINED, REPOSITORIES
from evals.checkpoints import load_pipeline
from evals.hub import hub_file, hub_folder
from evals.weights import FOLDER, Weights


def http(kind: type[Exception], status: int = 502, said: str | None = None) -> Exception:
    """An error of the hub's client with as much of the answer as is looked at."""
    error = kind.__new__(kind)
    error.args = ("told by the hub",)
    error.response = SimpleNamespace(status_code=status, reason_phrase="Reason")  # type: ignore[attr-defined]
    error.server_message = said  # type: ignore[attr-defined]
    return error


def not_given_out(answer: Exception) -> Exception:
    """What the client raises of a file that the hub refuses and that was not fetched before."""
    error = errors.LocalEntryNotFoundError("x")
    error.__cause__ = answer
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (http(errors.GatedRepoError), "a/b is gated: accept its terms at https://huggingface.co/a/b"),
        (http(errors.RepositoryNotFoundError), "the hub has no repository a/b that you may read"),
        (http(errors.RevisionNotFoundError), "a/b has no revision v9"),
        (
            errors.LocalEntryNotFoundError("x"),
            "the hub cannot be reached, and f.json of a/b at revision v9 is not",
        ),
        (errors.OfflineModeIsEnabled("x"), "the hub cannot be reached"),
        (
            not_given_out(http(errors.DisabledRepoError, 403, "Access to this resource is disabled.")),
            "the hub answers 403 (Access to this resource is disabled.), and f.json of a/b at revision v9 is not among",
        ),
        (
            not_given_out(http(errors.HfHubHTTPError, 451)),
            "the hub answers 451 (Reason), and f.json of a/b at revision v9 is not among",
        ),
        (
            http(errors.HfHubHTTPError, 401, "Invalid credentials"),
            "f.json of a/b at revision v9 cannot be had: the hub answers 401 (Invalid credentials): `hf auth login`",
        ),
        (http(errors.RemoteEntryNotFoundError), "a/b at revision v9 has no file f.json"),
        (
            http(errors.HfHubHTTPError),
            "the download of f.json of a/b at revision v9 broke off (HfHubHTTPError): the same command goes on",
        ),
        (
            errors.HTTPError("read timed out\nafter five attempts"),  # type: ignore[attr-defined]
            "the download of f.json of a/b at revision v9 broke off (HTTPError): the same command goes on",
        ),
        (
            OSError("Consistency check failed: 5 bytes instead of 9 (f.json).\nThis is usually"),
            "f.json of a/b at revision v9 could not be fetched: Consistency check failed: 5 bytes instead of 9",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "f.json of a/b at revision v9 could not be fetched: No space left on device",
        ),
    ],
)
def test_each_reason_is_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, told: str) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ValueError, match="^" + re.escape(told)) as refused:
        hub_file("a/b", "f.json", "v9")
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match="^" + re.escape(told.replace("f.json", "a part")[:40])):
        hub_folder("a/b", ["*.json"], "v9")


def test_a_file_that_is_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def fetch(*arguments: Any, **options: Any) -> str:
        asked.append((arguments, options))
        return str(tmp_path / "f.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert hub_file("a/b", "f.json", "v9") == tmp_path / "f.json"
    assert asked == [(("a/b", "f.json"), {"revision": "v9"})]


def test_a_base_on_a_hub_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(ValueError, match=r"base: a/b cannot be opened .*: the hub cannot be reached"):
        load_pipeline("a/b")


def test_a_base_whose_download_broke_off_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')

    def break_off(*_: Any, **__: Any) -> str:
        raise errors.HTTPError("peer closed connection")  # type: ignore[attr-defined]

    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "model_index.json")
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", break_off)
    with pytest.raises(
        ValueError, match=r"base: a/b cannot be opened .*: the download of a part of a/b broke off"
    ):
        load_pipeline("a/b")


def gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has no repository at all."""

    def refuse(*_: Any, **__: Any) -> str:
        raise http(errors.RepositoryNotFoundError, 404)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@pytest.mark.parametrize(
    ("base", "told"),
    [
        (
            "runwayml/stable-diffusion-v1-5",
            "others keep its weights at stable-diffusion-v1-5/stable-diffusion-v1-5; name another hub id, ",
        ),
        ("a/b", "name another hub id, a folder in diffusers layout or a .safetensors file"),
    ],
)
def test_of_a_base_that_is_gone_it_is_said_what_to_take(
    monkeypatch: pytest.MonkeyPatch, base: str, told: str
) -> None:
    gone(monkeypatch)
    expected = f"the hub has no repository {base} that you may read: {told}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        load_pipeline(base)


def test_where_others_keep_weights_they_are_of_the_same_architecture() -> None:
    assert MAINTAINED
    for taken_down, kept in MAINTAINED.items():
        assert REPOSITORIES[taken_down] == REPOSITORIES[kept]
        assert taken_down.partition("/")[2] == kept.partition("/")[2]


@pytest.mark.parametrize("folder", [None, "mine"])
def test_of_a_scorers_weights_that_are_gone_it_is_said_where_a_copy_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str | None
) -> None:
    """Neither another repository nor a folder in diffusers layout can take their place."""
    gone(monkeypatch)
    monkeypatch.delenv(FOLDER, raising=False)
    place = "a/b/w.safetensors"
    told = f"; a copy of your own is read as {place} below a folder that {FOLDER} names"
    if folder:
        monkeypatch.setenv(FOLDER, str(tmp_path / folder))
        told = f", nor at {tmp_path / folder / place}, where {FOLDER} has it"
    weights = Weights("a/b", ("w.safetensors",), "MIT", free=True)
    with pytest.raises(ValueError) as refused:
        weights.paths()
    assert str(refused.value) == f"the hub has no repository a/b that you may read{told}"
