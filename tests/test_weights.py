"""Weights of others: found where they lie, checked, under their terms, and opened without running code of theirs."""

from __future__ import annotations

import hashlib
import os
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from accelerate.utils import save as pickled  # the form in which others publish some
from click.testing import CliRunner, Result
from huggingface_hub import errors
from safetensors.torch import save_file

import prompts
from evals import scorers, suites, weights
from evals.__main__ import main as evals_command
from evals.diffusion import Sampling
from evals.miniature import weights_folder
from evals.suites import Part, Suite
from evals.weights import Carried, Weights, accept_terms, read_tensors, refuse_unaccepted, sha256_of
from train.__main__ import main as train_command

CONTENT = {"model.bin": b"numbers", "sub/config.json": b"{}"}
ONE = Weights("owner/name", tuple(CONTENT), "MIT", free=True)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def nothing_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_accepted", set())
    monkeypatch.delenv(weights.FOLDER, raising=False)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a hub that has what lies in it, and cannot be reached for more."""

    def fetch(repository: str, name: str, revision: str | None = None) -> str:
        path = tmp_path / "hub" / repository / (revision or "main") / name
        if not path.is_file():
            raise errors.LocalEntryNotFoundError("no network")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return tmp_path / "hub"


def put(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# ------------------------------------------------------------------------------------------------------------------- found


def test_a_folder_of_ones_own_goes_before_the_hub(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = put(hub / "owner" / "name" / "v1", CONTENT)
    versioned = replace(ONE, revision="v1")
    assert versioned.paths() == [cached / name for name in CONTENT]
    assert versioned.folder() == cached
    mine = put(tmp_path / "mine" / "owner" / "name", CONTENT)
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "mine"))
    assert versioned.paths() == [mine / name for name in CONTENT]
    assert versioned.folder() == mine
    assert replace(ONE, files=("sub/config.json",)).folder() == mine


def test_what_is_not_in_ones_own_folder_comes_from_the_hub(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = put(hub / "owner" / "name" / "main", CONTENT)
    mine = put(tmp_path / "mine" / "owner" / "name", {"model.bin": b"numbers"})
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "mine"))
    assert ONE.paths() == [mine / "model.bin", cached / "sub" / "config.json"]
    with pytest.raises(ValueError, match=r"the files of owner/name lie in two folders, model.bin in "):
        ONE.folder()


def test_where_a_file_lies_on_this_machine_is_known_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hub's cache as its client lays it out, at the revision that is wanted."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    versioned = replace(ONE, revision="a" * 40)
    assert versioned.here("model.bin") is None
    cached = put(tmp_path / "cache" / "models--owner--name" / "snapshots" / ("a" * 40), CONTENT)
    assert versioned.here("model.bin") == cached / "model.bin"
    assert replace(ONE, revision="b" * 40).here("model.bin") is None
    mine = put(tmp_path / "mine" / "owner" / "name", {"model.bin": b"numbers"})
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "mine"))
    assert versioned.here("model.bin") == mine / "model.bin"
    assert versioned.here("sub/config.json") == cached / "sub" / "config.json"


def test_what_is_nowhere_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.FOLDER, str(tmp_path / "nowhere"))
    with pytest.raises(
        ValueError, match=r"^the hub cannot be reached, and model.bin of owner/name is not among"
    ):
        ONE.paths()


def test_another_content_is_refused_and_what_is_expected_passes(hub: Path) -> None:
    folder = put(hub / "owner" / "name" / "main", CONTENT)
    hashes = tuple(sha256(content) for content in CONTENT.values())
    checked = replace(ONE, sha256=hashes)
    assert checked.paths() == ONE.paths()
    (folder / "model.bin").write_bytes(CONTENT["model.bin"][:-1])  # half a download
    told = f"{folder / 'model.bin'} is not the model.bin of owner/name that is expected (sha256 "
    with pytest.raises(ValueError, match=re.escape(told)) as refused:
        checked.paths()
    assert sha256(b"number")[:12] in str(refused.value)
    assert hashes[0][:12] in str(refused.value)
    assert "delete it, and it is fetched again" in str(refused.value)


def test_of_a_link_among_the_hubs_downloads_the_content_is_to_be_deleted(hub: Path, tmp_path: Path) -> None:
    """Where the link alone is deleted, the hub's client makes it again, to the same content."""
    folder = put(hub / "owner" / "name" / "main", CONTENT)
    hashes = tuple(sha256(content) for content in CONTENT.values())
    blob = tmp_path / "blob"
    blob.write_bytes(b"half")
    (folder / "model.bin").unlink()
    (folder / "model.bin").symlink_to(blob)
    with pytest.raises(ValueError, match=re.escape(f": delete {blob}, and it is fetched again")):
        replace(ONE, sha256=hashes).paths()


def test_a_file_that_was_changed_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for content in (b"one", b"other"):
        path.write_bytes(content)
        assert sha256_of(path) == sha256(content)
    state = path.stat()
    path.write_bytes(b"OTHER")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert sha256_of(path) == sha256(b"OTHER")


def test_the_digest_of_known_weights_fetches_nothing(hub: Path) -> None:
    hashes = tuple(sha256(content) for content in CONTENT.values())
    known = replace(ONE, sha256=hashes)
    digest = known.digest()
    assert digest == sha256("".join(hashes).encode())
    with pytest.raises(ValueError, match="the hub cannot be reached"):
        ONE.digest()
    put(hub / "owner" / "name" / "main", CONTENT)
    assert ONE.digest() == digest
    assert replace(ONE, sha256=hashes[::-1]).digest() != digest
    assert scorers.version_of(known) == scorers.version_of(ONE)


# ------------------------------------------------------------------------------------------------------------------- terms


def test_terms_are_accepted_for_one_repository_at_a_time(hub: Path) -> None:
    put(hub / "owner" / "name" / "main", CONTENT)
    strict = replace(ONE, free=False, licence="not for commerce")
    refuse_unaccepted([ONE])
    told = r"owner/name are not free for every use \(not for commerce\): .*, say --accept-terms owner/name$"
    for ask in (strict.paths, strict.folder, lambda: refuse_unaccepted([ONE, strict])):
        with pytest.raises(ValueError, match=told):
            ask()
    accept_terms(["another/name"])
    with pytest.raises(ValueError, match=told):
        strict.paths()
    accept_terms(["owner/name"])
    assert strict.paths() == ONE.paths()


SCORER = "aesthetic"


def scored(tmp_path: Path, *options: str) -> Result:
    out = str(tmp_path / "scores" / "x.csv")
    return CliRunner().invoke(
        evals_command, ["score", str(weights_folder("pipeline")), "--out", out, "--suite", "few", *options]
    )


def trained(_: Path, *options: str) -> Result:
    return CliRunner().invoke(
        train_command, ["imagereward", "--on", "sd2", "--reward", SCORER, "--dry-run", *options]
    )


@pytest.mark.parametrize("command", [scored, trained])
def test_both_command_lines_ask_for_terms(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (strict, *_) = (w for w in scorers.weights_of(scorers.load(SCORER, terms=False)) if not w.free)
    part = Part("miniature-portraits-unseen", 1, (SCORER,))
    few = Suite((part,), Sampling(steps=1, guidance=None, micro_batch=32), seed=0)
    monkeypatch.setattr(suites, "load", lambda _: few)
    refused = command(tmp_path)
    assert refused.exit_code == 2
    (message,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert message.endswith(f"if you may use them, say --accept-terms {strict.repository}")
    wrong = command(tmp_path, "--accept-terms", "owner/name")
    assert f"say --accept-terms {strict.repository}" in wrong.stderr
    accepted = command(tmp_path, "--accept-terms", "owner/name", "--accept-terms", strict.repository)
    assert "--accept-terms" not in accepted.stderr
    if command is trained:  # which fetches nothing
        assert accepted.exit_code == 0
    else:
        assert accepted.exit_code == 2
        assert "the hub cannot be reached, and " in accepted.stderr
    assert "Traceback" not in accepted.output


def test_the_list_of_licences_has_every_scorer_and_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(ONE, revision="0123abc", sha256=("a" * 64, "b" * 64))
    strict = Weights("other/one", ("w.pt",), "not for commerce", free=False)
    made = {"first": (known,), "second": (known, strict), "third": ()}
    inside = Carried("evals", "weights.py", "BSD-2-Clause; of somebody else")
    carried = {"third": (inside,)}
    monkeypatch.setattr(scorers, "names", lambda _: tuple(made))
    monkeypatch.setattr(
        scorers, "load", lambda name, **_: SimpleNamespace(weights=made[name], carried=carried.get(name, ()))
    )
    result = CliRunner().invoke(evals_command, ["licences"])
    assert result.exit_code == 0, result.output
    expected = [
        "first: owner/name at 0123abc; MIT; free for every use",
        f"    model.bin  sha256 {'a' * 64}",
        f"    sub/config.json  sha256 {'b' * 64}",
        "second: owner/name at 0123abc; MIT; free for every use",
        f"    model.bin  sha256 {'a' * 64}",
        f"    sub/config.json  sha256 {'b' * 64}",
        "second: other/one at the newest revision; not for commerce; needs --accept-terms other/one",
        "    w.pt  sha256 in the card of a run that uses it",
        "third: the package evals; BSD-2-Clause; of somebody else; free for every use",
        f"    weights.py  sha256 {hashlib.sha256(Path(weights.__file__).read_bytes()).hexdigest()}",
    ]
    assert result.output.splitlines()[: len(expected)] == expected
    rest = result.output.splitlines()[len(expected) :]
    assert rest == [f"{name}: {source}; {licence}" for name, source, licence in prompts.sources()]


def test_the_list_of_licences_is_that_of_the_scorers_there_are() -> None:
    result = CliRunner().invoke(evals_command, ["licences"])
    assert result.exit_code == 0, result.output
    for name in scorers.names("photo"):
        for one in scorers.weights_of(scorers.load(name, terms=False)):
            assert f"{name}: {one.repository} at {one.revision or 'the newest revision'}; " in result.output
            assert all(f"    {file}  sha256 " in result.output for file in one.files)
    heads = "lpips: the package torchmetrics; BSD-2-Clause; the authors' linear heads on VGG-16"
    assert heads in result.output


# ------------------------------------------------------------------------------------------------------------------ opened

TENSORS = {"a.weight": torch.arange(2000.0).reshape(40, 50), "b": torch.tensor([1, 2])}


def equal(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in found)


def test_tensors_are_read_of_both_kinds_of_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    assert equal(read_tensors(tmp_path / "w.safetensors"))
    for number, content in enumerate(
        (TENSORS, OrderedDict(TENSORS), {"state_dict": OrderedDict(TENSORS), "epoch": 3, "lr": [0.1]})
    ):
        pickled(content, tmp_path / f"{number}.pt", safe_serialization=False)
        assert equal(read_tensors(tmp_path / f"{number}.pt"))


@pytest.mark.parametrize(
    "content", [{"a": 1.0}, [torch.zeros(1)], {3: torch.zeros(1)}, {"state_dict": {"a": "b"}}, torch.zeros(2)]
)
def test_a_file_of_something_else_is_refused(content: Any, tmp_path: Path) -> None:
    pickled(content, tmp_path / "w.pt", safe_serialization=False)
    with pytest.raises(ValueError, match=r"w\.pt holds no dictionary of tensors by name$"):
        read_tensors(tmp_path / "w.pt")


class Code:
    """Runs a command where it is unpickled as anything."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "run", tmp_path / "w.pt"
    pickled({"a": torch.zeros(1), "b": Code(trace)}, path, safe_serialization=False)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(f"cposix\nsystem\n(S'touch {trace}'\ntR.".encode())
    for file in (path, bare):
        with pytest.raises(
            ValueError, match=f"^{file} is a pickle that holds more than tensors, or is damaged, and is"
        ):
            read_tensors(file)
    assert not trace.exists()


def test_a_file_that_was_cut_off_is_one_sentence(tmp_path: Path) -> None:
    pickled(TENSORS, tmp_path / "w.pt", safe_serialization=False)
    save_file(TENSORS, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        path = tmp_path / name
        whole = path.read_bytes()
        for size in (*range(0, 200, 7), *range(200, len(whole), 499), len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=f"^{path} is .*damaged"):
                read_tensors(path)
        path.unlink()
        with pytest.raises(FileNotFoundError):
            read_tensors(path)
