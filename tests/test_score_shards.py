"""Several processes share a scoring: however many there are, and wherever they are killed, the rows are the same byte for byte."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from evals import asides, harness, pictures, workers
from evals import rows as score_rows
from evals.checkpoints import ROOT, resolve
from evals.diffusion import Painter
from evals.files import write_bytes
from prompts.lock import locked
from tests import toy, toy_scoring

PICTURES = toy_scoring.PROMPTS * (4 + 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run and its base, of random weights."""
    folder = tmp_path_factory.mktemp("runs")
    toy.build_tiny_pipeline(seed=0).save_pretrained(folder / "pipeline")
    toy.build_tiny_pipeline(seed=1).save_pretrained(folder / "joint-tiny-0")
    card = {
        "name": "joint-tiny-0",
        "model": "tiny",
        "seed": 0,
        "rewards": ["redness"],
        "base": str(folder / "pipeline"),
        "experiment": {"domain": "photo"},
    }
    (folder / "joint-tiny-0" / "run.json").write_text(json.dumps(card), encoding="utf-8")
    return folder / "joint-tiny-0"


@pytest.fixture(scope="module")
def straight(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scored by one process in one go."""
    out = tmp_path_factory.mktemp("straight") / "scores" / "joint.csv"
    with pytest.MonkeyPatch.context() as patch:
        toy_scoring.install(patch.setattr)
        harness.score(str(run), out, "toy")
    return out


def scored_by(run: Path, out: Path, log: Path, count: int) -> list[Any]:
    """Processes that are given the same command, as hosts that share the folder; forked from one that has everything imported."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.toy_imports"])
    processes = [
        context.Process(target=toy_scoring.main, args=(str(run), str(out), str(log))) for _ in range(count)
    ]
    for process in processes:
        process.start()
    return processes


def all_end_well(processes: Sequence[Any]) -> None:
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def without_machine(out: Path) -> dict[str, object]:
    told = json.loads(asides.beside(out).read_text(encoding="utf-8"))
    assert told.pop("machine")["seconds"]["total"] > 0
    return dict(told)


def test_three_processes_give_the_rows_of_one_and_do_everything_once(
    run: Path, straight: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "scores" / "joint.csv", tmp_path / "log"
    all_end_well(scored_by(run, out, log, 3))
    assert out.read_bytes() == straight.read_bytes()
    assert without_machine(out) == without_machine(straight)
    lines = Counter(log.read_text(encoding="utf-8").splitlines())
    drawn = {line: count for line, count in lines.items() if line.startswith("drawn")}
    own_and_base = PICTURES + toy_scoring.PROMPTS * 4  # the second part has no scorer that compares
    assert sum(drawn.values()) == own_and_base
    shown = {line: count for line, count in lines.items() if line.startswith("redness")}
    of_both_parts = 5 + 3  # units of 8 pictures: of 9 prompts with 4 pictures, of 9 with 2
    assert sum(shown.values()) == of_both_parts


def test_killed_anywhere_it_goes_on_with_what_is_there(run: Path, straight: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "scores" / "joint.csv", tmp_path / "log"
    parts = out.with_name("joint.csv.parts")
    (killed,) = scored_by(run, out, log, 1)
    while len(list(parts.glob("*.json"))) < 2 and killed.is_alive():
        time.sleep(0.002)
    killed.kill()
    killed.join()
    assert not out.exists()
    all_end_well(scored_by(run, out, log, 2))
    assert out.read_bytes() == straight.read_bytes()
    shown = Counter(
        line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("redness")
    )
    assert sum(shown.values()) <= 5 + 3 + 1  # but for the unit that it was killed in, nothing was done twice


FIRST = "toys-0"
"""Lock of the first chunk of the run's pictures."""


def drawn_in(out: Path) -> list[Path]:
    return sorted((out.parent.parent / "images" / "joint-tiny-0" / "toys").rglob("*.png"))


def test_on_an_accelerator_a_chunk_is_written_while_the_next_is_drawn_and_is_nobody_elses_until_it_is_whole(
    run: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_scoring.install(monkeypatch.setattr)
    monkeypatch.setattr(pictures.Pictures, "_draws_on", True)
    out = tmp_path / "scores" / "joint.csv"
    lock = tmp_path / "images" / ".joint-tiny-0.locks" / FIRST
    next_is_drawn, free, save, paint = threading.Event(), [], pictures._save, Painter.paint

    def late(pixels: Any, path: str) -> None:
        assert next_is_drawn.wait(60), "nothing is drawn meanwhile"
        save(pixels, path)

    calls: list[int] = []

    def watched(self: Painter, texts: Any, indices: Any, seed: int) -> torch.Tensor:
        calls.append(len(texts))
        if len(calls) == 2:
            assert drawn_in(out) == []
            with locked(lock, wait=False) as taken:
                free.append(taken)
            next_is_drawn.set()
        return paint(self, texts, indices, seed)

    monkeypatch.setattr(pictures, "_save", late)
    monkeypatch.setattr(Painter, "paint", watched)
    harness.score(str(run), out, "toy")
    assert free == [False]
    with locked(lock, wait=False) as taken:
        assert taken
    assert out.read_bytes() == straight.read_bytes()


def test_a_full_disk_is_said_and_what_is_there_is_whole(
    run: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_scoring.install(monkeypatch.setattr)
    out, write = tmp_path / "scores" / "joint.csv", pictures.write_bytes
    written: list[str] = []
    at_a_time = threading.Lock()

    def full(content: bytes, path: str, durable: bool = True) -> None:
        with at_a_time:
            if path.endswith(".png") and len(written) == 3:
                raise OSError(errno.ENOSPC, "No space left on device", path)
            write(content, path, durable)
            written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "write_bytes", full)
        with pytest.raises(OSError, match="No space left on device"):
            harness.score(str(run), out, "toy")
    assert len(drawn_in(out)) == 3
    assert [*out.parent.parent.rglob("*.part")] == []
    harness.score(str(run), out, "toy")
    assert out.read_bytes() == straight.read_bytes()


def test_what_was_drawn_before_ctrl_c_is_kept(
    run: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_scoring.install(monkeypatch.setattr)
    out, paint, calls = tmp_path / "scores" / "joint.csv", Painter.paint, []

    def interrupted(self: Painter, texts: Any, indices: Any, seed: int) -> torch.Tensor:
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return paint(self, texts, indices, seed)

    with monkeypatch.context() as patch:
        patch.setattr(Painter, "paint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            harness.score(str(run), out, "toy")
    assert len(drawn_in(out)) == 2 * pictures.CHUNK
    harness.score(str(run), out, "toy")
    assert out.read_bytes() == straight.read_bytes()


def test_files_have_the_permissions_of_the_umask_whoever_writes_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(
                    lambda n: write_bytes(b"x", tmp_path / f"{n % 3}" / f"{n}", durable=False), range(60)
                )
            )
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*")} == {0o640}
    assert len([*tmp_path.glob("*/*")]) == 60


@pytest.mark.slow  # each imports everything
def test_processes_of_one_command(run: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores" / "joint.csv"
    command = [sys.executable, "-m", "tests.toy_scoring", str(run), str(out), str(tmp_path / "log")]
    told = [one | {"OMP_NUM_THREADS": "1"} for one in workers.environments(2, [])]
    assert workers.run(command, told) == 0
    assert out.read_bytes() == straight.read_bytes()


def test_what_is_there_is_not_done_again_and_what_changed_is(
    run: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    toy_scoring.install(monkeypatch.setattr)

    def asked() -> list[str]:
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    first = straight.read_bytes()
    before = straight.stat().st_mtime_ns
    harness.score(str(run), straight, "toy")
    assert asked() == []
    assert straight.read_bytes() == first
    assert straight.stat().st_mtime_ns > before  # make goes by it

    straight.unlink()
    harness.score(str(run), straight, "toy")
    assert asked() == []
    assert straight.read_bytes() == first

    picture = straight.parent.parent / "images" / "joint-tiny-0" / "toys" / "p3" / "1.png"
    os.utime(picture)  # touched, not changed
    harness.score(str(run), straight, "toy")
    assert asked() == []

    whole = picture.read_bytes()
    picture.write_bytes(whole[:40])
    harness.score(str(run), straight, "toy")
    assert asked() == ["drawn toys nurse d 1"]
    assert (picture.read_bytes(), straight.read_bytes()) == (whole, first)

    picture.write_bytes(picture.with_name("0.png").read_bytes())
    harness.score(str(run), straight, "toy")
    assert asked() == ["redness 8 p2", "features 8", "features 8"]  # its unit, and no other
    told = without_machine(straight)["prompt_sets"]["toys"]  # type: ignore[index]
    assert told["duplicates"] == {"within_prompts": 1, "across_prompts": 0}

    monkeypatch.setattr(toy_scoring.Redness, "version", "11111111")
    picture.write_bytes(whole)
    harness.score(str(run), straight, "toy")
    lines = asked()
    assert len([line for line in lines if line.startswith("redness")]) == 5 + 3
    assert len([line for line in lines if line.startswith("features")]) == 2
    assert straight.read_bytes() == first.replace(b"redness,00000000", b"redness,11111111")

    monkeypatch.undo()
    toy_scoring.install(monkeypatch.setattr)
    harness.score(str(run), straight, "toy")
    assert straight.read_bytes() == first


def test_two_stages_are_the_scorer_itself(straight: Path) -> None:
    rows = score_rows.read([straight])
    toys = rows[rows["prompt_set"] == "toys"]
    staged, whole = (toys[toys["scorer"] == name]["value"].to_numpy() for name in ("distance", "all_at_once"))
    assert (staged == whole).all()
    assert staged.std() > 0


def test_no_scorer_is_shown_more_than_a_unit(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory does not grow with the suite, but for a scorer that asks for all pictures at once."""
    monkeypatch.setattr(toy_scoring.AllAtOnce, "scope", "image")
    monkeypatch.setattr(toy_scoring.AllAtOnce, "__call__", lambda *_: torch.zeros(len(_[1])))
    toy_scoring.install(monkeypatch.setattr)
    held: list[int] = []
    real = harness.stacked

    def stacked(pictures):
        held.append(len(pictures))
        return real(pictures)

    monkeypatch.setattr(harness, "stacked", stacked)
    harness.score(str(run), tmp_path / "scores" / "x.csv", "toy")
    assert max(held) == 8
    assert len(held) == 2 * 5 + 3  # once per unit for all scorers, and once for the base's of the first part


def test_units_are_whole_prompts_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (1, 3, 4, 16, 100, 200):
        monkeypatch.setattr("prompts.load", toy_scoring.load_prompts)
        units = harness.units_of(toy_scoring.Part("toys", each, ()))
        assert [item for unit in units for item in unit.items] == harness.items_of(units[0].part)
        for unit in units:
            assert len(unit.items) % each == 0
            assert len(unit.items) <= max(each, harness.SHOWN)
        if 128 % each == 0:
            assert all(len(unit.items) == 128 for unit in units[:-1])


# ------------------------------------------------------------------------------------------------------------ processes


SPEAKS = "import os, sys, time; rank = int(os.environ['RANK']); "


def run_workers(code: str, count: int, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    command = [sys.executable, "-c", SPEAKS + code]
    ended = workers.run(command, workers.environments(count, []))
    return ended, capfd.readouterr().err


def test_one_that_fails_ends_the_others_and_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    code, err = run_workers(
        "sys.exit(print('note', 'error: no luck', sep=chr(10), file=sys.stderr) or 2) if rank == 1 else time.sleep(60)",
        2,
        capfd,
    )
    assert (code, err) == (2, "error: no luck\n")
    assert time.monotonic() - begun < 20


def test_only_the_first_speaks_and_one_that_is_killed_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_workers("print(rank, file=sys.stderr)", 3, capfd) == (0, "0\n")
    code, err = run_workers("os.kill(os.getpid(), 9) if rank == 1 else time.sleep(60)", 2, capfd)
    assert (code, err) == (128 + signal.SIGKILL, "error: process 1 ended with code -9\n")


def test_each_process_has_a_gpu_of_its_own_or_a_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    told = workers.environments(2, ["4", "GPU-5"])
    assert [one["CUDA_VISIBLE_DEVICES"] for one in told] == ["4", "GPU-5"]
    assert [one["OMP_NUM_THREADS"] for one in workers.environments(3, [])] == ["2", "2", "2"]
    with pytest.raises(ValueError, match="--processes is 3, but there are 2 GPUs"):
        workers.environments(3, ["0", "1"])


def test_a_signal_to_end_reaches_the_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from evals import workers; "
        f"sys.exit(workers.run([sys.executable, '-c', {SPEAKS + 'open(sys.argv[1] + str(rank), chr(119)).close(); time.sleep(60)'!r}, sys.argv[1]], workers.environments(2, [])))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "alive")], cwd=ROOT)
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    parent.terminate()
    assert parent.wait(timeout=20) == 128 + signal.SIGTERM


def test_processes_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    waits = "from evals import workers; workers.end_with_launcher(); "
    waits += "open(sys.argv[1] + str(os.getpid()), chr(119)).close(); time.sleep(60)"
    code = (
        "import sys; from evals import workers; "
        f"workers.run([sys.executable, '-c', {SPEAKS + waits!r}, sys.argv[1]], workers.environments(2, []))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, f"{tmp_path}/"], cwd=ROOT)
    while len(alive := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        time.sleep(0.01)
    time.sleep(1.5)
    assert all(map(runs, alive))
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while any(map(runs, alive)):
        assert time.monotonic() < until
        time.sleep(0.05)


def runs(process: int) -> bool:
    """Whether a process is there, and has not ended unheard."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def another(run: Path, folder: Path, pipeline: Any) -> Path:
    """A run of the same name with other weights."""
    pipeline.save_pretrained(folder / run.name)
    (folder / run.name / "run.json").write_bytes((run / "run.json").read_bytes())
    return folder / run.name


def test_a_folder_that_another_command_has_taken_gets_no_picture_of_ours(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_scoring.install(monkeypatch.setattr)
    part, images = toy_scoring.SUITE.parts[1], tmp_path / "images"
    items = pictures.items_of(part)
    ours = pictures.Pictures(resolve(str(run)), toy_scoring.SUITE, images)
    ours.make(part, items[:4], wait=True)
    other = another(run, tmp_path / "other", toy.build_tiny_pipeline(seed=2))
    theirs = pictures.Pictures(resolve(str(other)), toy_scoring.SUITE, images)
    for again in (lambda: ours.make(part, items, wait=True), lambda: ours.read(part, items[:4])):
        with pytest.raises(ValueError, match=r"another command now draws other pictures into .*joint-tiny-0"):
            again()
    assert not [*images.rglob("*.png")]
    theirs.make(part, items, wait=True)
    assert len(theirs.read(part, items)) == len(items)


def test_a_mark_that_a_kill_left_beside_its_place_is_nobodys(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / run.name
    mine.mkdir()
    (mine / ".source.json.ab12.part").write_text("{")
    pictures.Pictures(resolve(str(run)), toy_scoring.SUITE, tmp_path)
    assert [path.name for path in mine.iterdir()] == ["source.json"]


def test_weights_that_draw_nan_draw_no_black_pictures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_scoring.install(monkeypatch.setattr)
    pipeline = toy.build_tiny_pipeline(seed=2)
    torch.nn.init.constant_(pipeline.unet.conv_out.weight, float("nan"))
    damaged = another(run, tmp_path / "damaged", pipeline)
    with pytest.raises(ValueError, match=r"joint-tiny-0 draws NaN, no picture, of a prompt of toys"):
        harness.score(str(damaged), tmp_path / "scores" / "x.csv", "toy")
    assert not [*(tmp_path / "images").rglob("*.png")]
