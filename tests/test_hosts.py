"""Several hosts, here launchers side by side on this one: what they train, how they end, and the two files that start them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from train import launch
from train.launch import SECONDS_OF_SILENCE, SECONDS_TO_SPEAK, Hosts, free_port

ROOT = Path(__file__).parent.parent


@contextmanager
def hosts(out: Path, base: Path, prompts: Path, *settings: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The toy experiment on two hosts of one process each; whatever is left of them at the end is killed."""
    port = free_port()
    arguments = ["toy", "--on", "tiny", "--out", str(out), "--hosts", "2", "--first", f"127.0.0.1:{port}"]
    for setting in settings:
        arguments += ["--set", setting]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.toy", *arguments, "--host", str(number)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOY_BASE": str(base), "TOY_PROMPTS": str(prompts)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        yield started
    finally:
        for host in started:
            left = psutil.Process(host.pid).children(recursive=True) if host.poll() is None else []
            for process in (*left, host):
                process.kill()
            host.communicate()


def ended(host: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and the last error on standard error, which may follow on what was there of a progress bar."""
    _, stderr = host.communicate(timeout=240)
    return host.returncode, stderr[stderr.rfind("error: ") :].rstrip() if "error: " in stderr else ""


def has_begun(run: Path, started: list[subprocess.Popen[str]]) -> None:
    """Wait until a task's update is recorded."""
    log, deadline = run / "metrics.jsonl", time.monotonic() + 240
    while not log.is_file() or not log.read_text():
        assert all(host.poll() is None for host in started) and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_hosts_train_one_run(tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with hosts(run, tiny_pipeline_dir, toy_prompts, "iterations=1") as started:
        assert [ended(host)[0] for host in started] == [0, 0]
    assert json.loads((run / "run.json").read_text())["hardware"]["processes"] == 2


@pytest.mark.slow
def test_a_process_that_dies_ends_the_other_host_and_is_named_there(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with hosts(run, tiny_pipeline_dir, toy_prompts, "iterations=100000") as started:
        has_begun(run, started)
        (worker,) = psutil.Process(started[1].pid).children()
        began = time.monotonic()
        worker.kill()
        (first, said_first), (second, said_second) = (ended(host) for host in started)
        assert time.monotonic() - began < 60
    assert (second, said_second) == (128 + signal.SIGKILL, "error: process 1 was killed by signal 9")
    assert (first, said_first) == (1, "error: stopped, since process 1 was killed by signal 9")


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])
def test_a_host_that_dies_ends_the_other(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path, dead: int
) -> None:
    assert SECONDS_OF_SILENCE + SECONDS_TO_SPEAK <= 60
    run = tmp_path / "run"
    with hosts(run, tiny_pipeline_dir, toy_prompts, "iterations=100000") as started:
        has_begun(run, started)
        host = psutil.Process(started[dead].pid)
        # as after a power cut: nobody there says anything any more, and no connection is closed
        for process in (host, *host.children(recursive=True)):
            process.suspend()
        began = time.monotonic()
        code, said = ended(started[1 - dead])
        assert time.monotonic() - began < 90  # 60, and what a busy machine takes to end
        for process in (host, *host.children(recursive=True)):
            process.resume()
    assert (code, said) == (1, f"error: stopped, since host {dead} has fallen silent")


@pytest.mark.slow
def test_a_signal_to_one_host_saves_for_all(
    tiny_pipeline_dir: Path, toy_prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with hosts(run, tiny_pipeline_dir, toy_prompts, "iterations=100000", "save_every=100000") as started:
        has_begun(run, started)
        started[1].send_signal(signal.SIGTERM)
        assert [ended(host)[0] for host in started] == [143, 143]
    assert (run / "state" / "latest.json").is_file()


def test_a_host_that_hears_of_the_other_first_ends_as_it_does() -> None:
    """Asked to stop, both save; the one that ends a moment later was said to have stopped for the other's sake, with code 1."""

    class Heard:
        def trouble(self) -> str:
            return "process 0 ended with code 143"

        def tell(self, *_: object, **__: object) -> str:
            return ""

        def leave(self, in_trouble: bool = False) -> str:
            return ""

    line: Any = Heard()
    for code, expected in ((143, 143), (1, 1)):
        worker = subprocess.Popen(["sh", "-c", f"sleep 0.3; exit {code}"])
        assert launch._ended([worker], 1, line) == expected


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((2, 2, "a:1"), "--host is 2, but of --hosts 2 the last is 1"),
        ((2, 0, None), "--first is not given, but 2 hosts need"),
        ((2, 0, "a"), "--first is a, but"),
        ((2, 0, "a:70000"), "--first is a:70000, but"),
    ],
)
def test_hosts_that_cannot_meet_are_one_sentence(given: tuple[int, int, str | None], told: str) -> None:
    with pytest.raises(ValueError) as mistake:
        Hosts.of(*given)
    assert str(mistake.value).startswith(told)


# the files that start them


def environment(**changes: str) -> dict[str, str]:
    ours = ("HOSTS", "GPUS", "PORT", "DRY_RUN")
    slurm = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    return {name: value for name, value in slurm.items() if name not in ours} | changes


def test_plain_hosts_are_each_told_their_number() -> None:
    command = [
        ROOT / "train/hosts.sh",
        "joint",
        "--on",
        "sd2",
        "--set",
        "tasks.fairness.prompts=it's mine.txt",
    ]
    run = subprocess.run(
        command, env=environment(HOSTS="one two", GPUS="8", DRY_RUN="1"), capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    for number, (name, line) in enumerate(zip(("one", "two"), lines, strict=True)):
        assert line.startswith(f"{name}: cd ")
        assert line.endswith(f"--processes 8 --hosts 2 --host {number} --first one:29500")
        # what a shell there makes of it
        words = subprocess.run(
            ["sh", "-c", f"printf '%s\\n' {line.partition('-m train')[2]}"], capture_output=True, text=True
        )
        assert words.stdout.splitlines()[:5] == [*command[1:]]


@pytest.mark.parametrize(
    ("changes", "arguments", "told"),
    [
        ({}, ["joint"], 'HOSTS="..." must name the hosts'),
        ({"HOSTS": "one"}, [], "give the arguments"),
        ({"HOSTS": "one", "GPUS": "many"}, ["joint"], 'GPUS="many" must be'),
    ],
)
def test_plain_hosts_refuse_in_a_sentence(changes: dict[str, str], arguments: list[str], told: str) -> None:
    run = subprocess.run(
        [ROOT / "train/hosts.sh", *arguments], env=environment(**changes), capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(told)


def test_plain_hosts_are_reached_and_the_first_failure_is_the_exit_code(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$2: $3" >> {tmp_path}/calls\n[ "$2" = one ] || exit 3\n')
    ssh.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    run = subprocess.run(
        [ROOT / "train/hosts.sh", "joint"], env=environment(HOSTS="one two", PATH=path), capture_output=True
    )
    assert run.returncode == 3
    assert sorted((tmp_path / "calls").read_text().splitlines())[1].endswith("--host 1 --first one:29500")


def slurm(
    tmp_path: Path, code: int, *arguments: str, **changes: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """`train/slurm.sh` as a job of two hosts, where srun only writes down what it is asked to do."""
    srun = f'#!/bin/sh\necho "srun $*" >> {tmp_path}/calls\nexit {code}\n'
    scontrol = (
        f'#!/bin/sh\necho "scontrol $*" >> {tmp_path}/calls\n[ "$1" != show ] || printf "gpu3\\ngpu4\\n"\n'
    )
    for name, text in (("srun", srun), ("scontrol", scontrol)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {
        "SLURM_JOB_NODELIST": "gpu[3-4]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_ID": "31",
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    run = subprocess.run(
        [ROOT / "train/slurm.sh", *arguments],
        env=environment(**(job | changes)),
        capture_output=True,
        text=True,
    )
    calls = tmp_path / "calls"
    return run, calls.read_text().splitlines() if calls.is_file() else []


def test_a_slurm_job_tells_each_host_where_the_first_is(tmp_path: Path) -> None:
    run, calls = slurm(tmp_path, 0, "joint", "--on", "sd2")
    assert run.returncode == 0, run.stderr
    assert calls[1].endswith("train joint --on sd2 --processes 8 --hosts 2 --first gpu3:20062")
    assert '--host "$SLURM_NODEID"' in calls[1]


@pytest.mark.parametrize(("code", "queued"), [(143, True), (1, False), (0, False)])
def test_a_slurm_job_that_has_saved_is_queued_again(tmp_path: Path, code: int, queued: bool) -> None:
    run, calls = slurm(tmp_path, code, "joint")
    assert run.returncode == code
    assert ("scontrol requeue 31" in calls) == queued


def test_a_slurm_job_without_arguments_or_job_is_one_sentence(tmp_path: Path) -> None:
    run, _ = slurm(tmp_path, 0)
    assert run.returncode == 2
    assert run.stderr.startswith("give the arguments")
    run, calls = slurm(tmp_path, 0, "joint", SLURM_JOB_NODELIST="")
    assert run.returncode
    assert "this is a job for sbatch" in run.stderr
    assert not calls


def test_what_goes_along_arrives_as_it_is(tmp_path: Path) -> None:
    """Also over several lines, and with backslashes, of which a dry run's echo made others."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nprintf %s "$3"\n')
    ssh.chmod(0o755)
    weights, setting = "it's\nx $HOME", r"prompts=a\nb\c.txt"
    told = []
    for dry in ("", "1"):
        path = f"{tmp_path}:{os.environ['PATH']}"
        run = subprocess.run(
            [ROOT / "train/hosts.sh", "joint", "--set", setting],
            env=environment(HOSTS="one", DRY_RUN=dry, PATH=path, T2I_WEIGHTS_DIR=weights),
            capture_output=True,
            text=True,
        )
        told.append(run.stdout.removeprefix("one: ").rstrip())
    assert told[0] == told[1]
    along, _, words = told[0].partition(" .venv/bin/python -m train")
    said = subprocess.run(
        ["sh", "-c", f"{along.rpartition('exec ')[2]} sh -c 'printf %s \"$T2I_WEIGHTS_DIR\"'"],
        capture_output=True,
        text=True,
    )
    assert said.stdout == weights
    assert setting in words


def test_plain_hosts_may_be_listed_in_lines_and_with_users() -> None:
    run = subprocess.run(
        [ROOT / "train/hosts.sh", "joint"],
        env=environment(HOSTS=" me@one\n\ttwo\n", DRY_RUN="1", T2I_WEIGHTS_DIR="/w e"),
        capture_output=True,
        text=True,
    )
    first, second = run.stdout.splitlines()
    assert first.startswith("me@one: ")
    assert first.endswith("--hosts 2 --host 0 --first one:29500")
    assert second.endswith("--hosts 2 --host 1 --first one:29500")
    assert "exec env T2I_WEIGHTS_DIR='/w e' .venv/bin/python" in second


def test_plain_hosts_are_told_no_token_where_others_can_read_it(tmp_path: Path) -> None:
    """A command line is everybody's to read, here and there, and so is what a dry run prints."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n')
    ssh.chmod(0o755)
    told = {"HF_TOKEN": "hf_secret", "HF_HOME": "/shared", "HOSTS": "one"}
    for more in ({"DRY_RUN": "1"}, {"PATH": f"{tmp_path}:{os.environ['PATH']}"}):
        run = subprocess.run(
            [ROOT / "train/hosts.sh", "joint"],
            env=environment(**told, **more),
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0
        assert "hf_secret" not in run.stdout + run.stderr
        assert run.stderr == "note: HF_TOKEN stays here, the hosts use their own login (`hf auth login`)\n"
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert "HF_HOME='/shared'" in call
    assert "hf_secret" not in call


@pytest.mark.parametrize("given", [{"HOSTS": " \n "}, {"HOSTS": "one", "PORT": "abc"}])
def test_plain_hosts_that_are_none_are_refused(given: dict[str, str]) -> None:
    run = subprocess.run([ROOT / "train/hosts.sh", "joint"], env=environment(**given), capture_output=True)
    assert (run.returncode, run.stdout) == (2, b"")
