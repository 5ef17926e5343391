"""The Makefile in a sandbox: its own folder, three experiments, and a Python that only writes down what it is asked to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ("base", "fairness", "joint")
PARALLEL = "-n logical --maxprocesses 4 --dist loadfile"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Logs its arguments. Training writes a state and then run.json, scoring and the rest write their file.
PYTHON = """#!/bin/sh
echo "$*" >> calls
[ "$2" = evals ] && kind=file || kind=run
while [ $# -gt 0 ]; do [ "$1" = --out ] && out=$2; shift; done
[ -n "$out" ] || exit 0
if [ $kind = run ]; then
  mkdir -p "$out/state"; echo state > "$out/state/latest"
  [ ! -e hang ] || { trap 'echo stopped >> calls; exit 143' TERM; touch hanging; while :; do sleep 0.05; done; }
  [ ! -e fail ] || exit 1
  [ -e "$out/run.json" ] || echo run > "$out/run.json"
else
  mkdir -p "$(dirname "$out")"; echo made > "$out"
fi
"""


class Sandbox:
    """A checkout with the Makefile and nothing that takes time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "Makefile", folder / "Makefile")
        for name in (*EXPERIMENTS, "__init__", "_shared"):
            self.write(f"train/experiments/{name}.py")
        for name in ("bench/bench_loop.py", "requirements.lock", ".ci/setup", ".venv/.complete"):
            self.write(name)
        for name in (
            "tests/parity/requirements.lock",
            ".venv-parity/.complete",
            "bench/peers/requirements.lock",
        ):
            self.write(name)
        self.program(".venv/bin/python", PYTHON)
        self.program("bin/nvidia-smi", "#!/bin/sh\nexit 9\n")  # no GPU, whatever machine this is
        self.program("bin/ls", "#!/bin/sh\nexit 2\n")

    def write(self, name: str, text: str = "") -> Path:
        """A file, newer than every one before."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, name: str, text: str) -> None:
        self.write(name, text).chmod(0o755)

    def age(self, name: str, seconds: float) -> None:
        """Set a file's time back."""
        then = time.time() - seconds
        os.utime(self.folder / name, (then, then))

    @property
    def environment(self) -> dict[str, str]:
        ours = (
            "MAKEFLAGS",
            "MAKELEVEL",
            "MFLAGS",
            "MAKEOVERRIDES",
            "ON",
            "SEEDS",
            "SET",
            "GPUS",
            "PYTHON",
            "RESULTS",
            "ARGS",
        )
        kept = {key: value for key, value in os.environ.items() if key not in ours}
        return kept | {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}

    def make(self, *arguments: str, fails: bool = False) -> str:
        """What make prints."""
        run = subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode != 0) == fails, run.stdout + run.stderr
        return run.stdout + run.stderr

    def calls(self, *arguments: str, fails: bool = False) -> list[str]:
        """What make had Python do."""
        log = self.folder / "calls"
        log.unlink(missing_ok=True)
        self.make(*arguments, fails=fails)
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def train(name: str, results: str = "results", more: str = "") -> str:
    experiment, model, seed = name.split("-")
    return f"-m train {experiment} --on {model} --seed {seed} --out {results}/runs/{name}{more}"


def score(name: str, results: str = "results") -> str:
    return f"-m evals score {results}/runs/{name} --out {results}/scores/{name}.csv"


def table(*names: str, results: str = "results") -> str:
    files = " ".join(f"{results}/scores/{name}.csv" for name in names)
    return f"-m evals compare {files} --out {results}/table.md"


def report(*names: str, results: str = "results") -> str:
    files = " ".join(f"{results}/scores/{name}.csv" for name in names)
    return (
        f"-m evals report {files} --runs {results}/runs --images {results}/images --out {results}/report.html"
    )


# methods


def test_methods_are_given_seeds_and_options(sandbox: Sandbox) -> None:
    assert sandbox.calls("methods") == ["-m bench.methods"]
    called = sandbox.calls("methods", "SEEDS=0 3", "ARGS=--methods ppo,nft --jobs 2")
    assert called == ["-m bench.methods --seeds 0,3 --methods ppo,nft --jobs 2"]
    called = sandbox.calls("methods", "RESULTS=mine", "ON=miniature")
    assert called == ["-m bench.methods --out mine --root mine/methods"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("methods", "SET=update.lr=1e-5"), "make methods takes no SET"),
        (("methods", "ON=sd2"), "make methods is on the miniature, not on ON=sd2"),
        (("train-joint", "HOSTS=a b"), "HOSTS is for train/hosts.sh"),
        (("train",), "make train-<experiment>: choose from train-base train-fairness train-joint"),
    ],
)
def test_what_means_nothing_is_refused(sandbox: Sandbox, given: tuple[str, ...], told: str) -> None:
    assert told in sandbox.make(*given, fails=True)
    assert not (sandbox.folder / "calls").exists()


# help


def test_plain_make_prints_the_list(sandbox: Sandbox) -> None:
    printed = sandbox.make()
    assert printed == sandbox.make("help")
    targets = (
        "demo",
        "test",
        "train-<experiment>",
        "eval",
        "compare",
        "report",
        "reproduce-<experiment>",
        "reproduce",
    )
    for target in (*targets, "methods", "bench", "check", "parity", "miniature", "lock", "clean"):
        assert f"\n  {target} " in printed
    assert "Experiments: base fairness joint\n" in printed
    assert not (sandbox.folder / "calls").exists()


def test_every_line_of_the_list_is_there_to_be_typed(sandbox: Sandbox) -> None:
    lines = [
        line[3:].split(" | ")[0]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if line.startswith("## ")
    ]
    for name in (line for line in lines if "=" not in line):
        sandbox.make("-n", "SEEDS=0", name.replace("<experiment>", "joint"))


def test_list_fits_a_terminal(sandbox: Sandbox) -> None:
    assert max(map(len, sandbox.make().splitlines())) <= 120


# one target, one command


@pytest.mark.parametrize(
    ("variable", "part"),
    [
        ("SEEDS=0-2", 'SEEDS="0-2" must be whole numbers'),
        ("SEEDS=0 -1", "must be whole numbers"),
        ("SEEDS=01", "must be whole numbers"),
        ("GPUS=0", "must be a number of processes"),
        ("GPUS=", "must be one value each"),
        ("ON=", "must be one value each"),
        ("ON=x-y", 'ON="x-y" must be one model'),
        ("RESULTS=my results", 'RESULTS="my results" must be one folder, without spaces'),
        ("RESULTS=", 'RESULTS="" must be one folder'),
        ("RESULTS=a%b", "must be one folder"),
        ("RESULTS=a:b", "must be one folder"),
    ],
)
def test_variables_that_are_none_are_one_sentence(sandbox: Sandbox, variable: str, part: str) -> None:
    printed = sandbox.make("train-joint", variable, fails=True)
    assert part in printed
    assert len(printed.splitlines()) == 1
    assert not (sandbox.folder / "calls").exists()


@pytest.mark.parametrize(
    ("target", "commands"),
    [
        ("test", [f"pytest -q -rs {PARALLEL}"]),
        ("bench", ["pytest bench -q -rs"]),
        ("bench-check", ["bench.check"]),
        ("check", ["ruff check", "ruff format --check", "mypy", f'pytest -q -rs {PARALLEL} -m "not slow"']),
        ("miniature", ["train.miniature all"]),
        *((f"train-{name}", [train(f"{name}-miniature-0")[3:]]) for name in EXPERIMENTS),
    ],
)
def test_dry_run_prints_the_command(sandbox: Sandbox, target: str, commands: list[str]) -> None:
    printed = [
        line.rstrip() for line in sandbox.make("-n", target).splitlines() if not line.startswith("echo")
    ]
    alone = "OPENBLAS_NUM_THREADS=1 " if target.startswith("bench") else ""
    assert printed == [f"{alone}.venv/bin/python -m {command}" for command in commands]


def test_train_names_the_model_and_why(sandbox: Sandbox) -> None:
    because = "(the default, as this machine has no GPU)"
    assert f"joint, seed 0, on miniature {because}" in sandbox.make("train-joint")
    assert "joint, seed 0, on sd15 (as asked)" in sandbox.make("train-joint", "ON=sd15")


def test_where_there_is_a_gpu_the_default_is_the_papers_base(sandbox: Sandbox) -> None:
    sandbox.program("bin/nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-0)'\n")
    assert "joint, seed 0, on sd2 (the default, as this machine has a GPU; ON=miniature" in sandbox.make(
        "train-joint"
    )
    assert sandbox.calls("train-fairness", "ON=miniature") == [train("fairness-miniature-0")]


def test_train_takes_model_seeds_and_settings(sandbox: Sandbox) -> None:
    more = " --set update.lr=1e-5 --set update.betas=0.9,0.99"
    called = sandbox.calls("train-joint", "ON=sd15", "SEEDS=3 4", "SET=update.lr=1e-5 update.betas=0.9,0.99")
    assert called == [train("joint-sd15-3", more=more), train("joint-sd15-4", more=more)]


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ("base=my models/sd 2 update.lr=1e-5", ["base=my models/sd 2", "update.lr=1e-5"]),
        ("  iterations=2   base=sd 2", None),
        ("  iterations=2   update.lr=1e-5 ", ["iterations=2", "update.lr=1e-5"]),
        ("base=it's mine update.lr=1e-5", ["base=it's mine", "update.lr=1e-5"]),
        ("base=two  spaces", None),
        ("base=a\ttab", None),
    ],
)
def test_a_value_with_spaces_is_given_whole_or_refused(
    sandbox: Sandbox, given: str, settings: list[str] | None
) -> None:
    each = PYTHON.replace('echo "$*" >> calls', "printf '%s\\n' \"$@\" >> calls")
    sandbox.program(".venv/bin/python", each)
    called = sandbox.calls("train-joint", f"SET={given}", fails=settings is None)
    if settings is None:
        assert not called
        assert "has several spaces in a row, of which make leaves one: give" in sandbox.make(
            "train-joint", f"SET={given}", fails=True
        )
    else:
        assert called[called.index("--set") :] == [word for one in settings for word in ("--set", one)]


def test_settings_that_are_none_are_refused(sandbox: Sandbox) -> None:
    told = 'SET="update.lr 1e-5" must be fields with values, such as SET="update.lr=2e-5 iterations=50"'
    assert told in sandbox.make("train-joint", "SET=update.lr 1e-5", fails=True)


def test_training_is_not_repeated_but_with_settings_the_trainer_is_asked(sandbox: Sandbox) -> None:
    sandbox.make("train-joint")
    assert sandbox.calls("train-joint") == []
    assert sandbox.calls("train-joint", "SET=iterations=2") == [
        train("joint-miniature-0", more=" --set iterations=2")
    ]


def test_unknown_experiment_is_one_sentence(sandbox: Sandbox) -> None:
    for target in ("train-fairnes", "reproduce-fairnes"):
        printed = sandbox.make(target, fails=True)
        assert printed.startswith("unknown experiment 'fairnes': choose from base fairness joint\n")


def test_gpus_are_processes(sandbox: Sandbox) -> None:
    assert sandbox.calls("train-joint", "GPUS=2") == [train("joint-miniature-0", more=" --processes 2")]


# from runs to the table


def test_compare_over_seeds_is_incremental(sandbox: Sandbox) -> None:
    names = [f"{experiment}-miniature-{seed}" for experiment in EXPERIMENTS for seed in (0, 1)]
    called = sandbox.calls("compare", "SEEDS=0 1")
    assert sorted(called[:-1]) == sorted([*map(train, names), *map(score, names)])
    assert called[-1] == table(*names)
    assert sandbox.calls("compare", "SEEDS=0 1") == [table(*names)]
    more = [f"{experiment}-miniature-2" for experiment in EXPERIMENTS]
    called = sandbox.calls("compare", "SEEDS=0 1 2")
    assert sorted(called[:-1]) == sorted([*map(train, more), *map(score, more)])


def test_committed_scores_are_taken_without_their_runs(sandbox: Sandbox) -> None:
    """A fresh clone: scores and table are there, in any order of time, runs are not."""
    names = ("base-miniature-0", "joint-miniature-0")
    for name in names:
        sandbox.write(f"results/scores/{name}.csv", "committed")
    assert sandbox.calls("compare") == [table(*names)]
    assert sandbox.calls("report") == [report(*names)]
    assert {(sandbox.folder / f"results/scores/{name}.csv").read_text() for name in names} == {"committed"}


def test_a_run_that_is_newer_than_its_scores_is_scored_again(sandbox: Sandbox) -> None:
    name = "joint-miniature-0"
    sandbox.write(f"results/scores/{name}.csv", "committed")
    sandbox.write("results/scores/base-miniature-0.csv", "committed")
    sandbox.age(f"results/scores/{name}.csv", 60)
    assert sandbox.calls("train-joint") == [train(name)]
    assert sandbox.calls("compare") == [score(name), table("base-miniature-0", name)]
    sandbox.age(f"results/runs/{name}/run.json", 120)
    assert sandbox.calls("compare") == [table("base-miniature-0", name)]


def test_eval_scores_finished_runs_of_every_model_and_their_bases(sandbox: Sandbox) -> None:
    sandbox.write("results/runs/joint-sd15-2/run.json")
    sandbox.write("results/runs/fairness-miniature-0/run.json")
    sandbox.write("results/runs/joint-miniature-1/state/latest", "unfinished")
    names = ("base-miniature-0", "base-sd15-2", "fairness-miniature-0", "joint-sd15-2")
    expected = [train("base-miniature-0"), train("base-sd15-2"), *map(score, names)]
    assert sorted(sandbox.calls("eval")) == sorted(expected)
    assert sandbox.calls("eval") == []


def test_eval_of_one_model(sandbox: Sandbox) -> None:
    sandbox.write("results/runs/joint-sd15-2/run.json")
    sandbox.write("results/runs/base-miniature-0/run.json")
    assert sandbox.calls("eval", "ON=miniature") == [score("base-miniature-0")]


@pytest.mark.parametrize("jobs", [(), ("-j4",)])
def test_what_a_command_scores_is_in_its_tables(sandbox: Sandbox, jobs: tuple[str, ...]) -> None:
    """Also beside scores that were there before, and where it is trained by the same command."""
    sandbox.write("results/runs/fairness-miniature-0/run.json")
    sandbox.write("results/scores/base-miniature-0.csv")
    names = ("base-miniature-0", "fairness-miniature-0")
    called = sandbox.calls(*jobs, "eval", "compare", "report", "pack")
    assert called[0] == score(names[1])
    files = " ".join(f"results/scores/{name}.csv" for name in names)
    packed = f"-m evals pack {files} --out results/scores.csv.xz"
    assert sorted(called[1:]) == sorted([table(*names), report(*names), packed])
    called = sandbox.calls(*jobs, "train-joint", "eval", "compare")
    assert called == [
        train("joint-miniature-0"),
        score("joint-miniature-0"),
        table(*names, "joint-miniature-0"),
    ]


@pytest.mark.parametrize("jobs", [(), ("-j4",)])
def test_settings_are_those_of_what_is_trained_and_not_of_what_is_trained_beside_it(
    sandbox: Sandbox, jobs: tuple[str, ...]
) -> None:
    sandbox.write("results/runs/fairness-miniature-0/run.json")
    names = ("base-miniature-0", "fairness-miniature-0", "joint-miniature-0")
    called = sandbox.calls(*jobs, "train-joint", "eval", "SET=iterations=3")
    expected = [train(names[0]), train(names[2]) + " --set iterations=3", *map(score, names)]
    assert sorted(called) == sorted(expected)


@pytest.mark.parametrize("jobs", [(), ("-j4",)])
def test_scores_of_a_run_that_is_trained_anew_are_made_anew(sandbox: Sandbox, jobs: tuple[str, ...]) -> None:
    for name in ("base-miniature-0", "joint-miniature-0"):
        sandbox.write(f"results/scores/{name}.csv", "committed")
        sandbox.age(f"results/scores/{name}.csv", 60)
    called = sandbox.calls(*jobs, "train-joint", "eval")
    assert called == [train("joint-miniature-0"), score("joint-miniature-0")]


def test_nothing_to_evaluate_or_compare_is_said(sandbox: Sandbox) -> None:
    assert "no finished run in results/runs: make train-<experiment> first\n" in sandbox.make(
        "eval", fails=True
    )
    for target in ("compare", "report"):
        assert "no scores in results/scores: make eval first\n" in sandbox.make(target, fails=True)
    sandbox.write("results/scores.csv.xz")
    assert "evals compare results/scores.csv.xz --out" in sandbox.make("compare", fails=True)


def test_reproduce_one_is_train_eval_table_and_report(sandbox: Sandbox) -> None:
    """Also where scores are there already: they are another machine's."""
    for seed in range(3):
        sandbox.write(f"results/scores/joint-miniature-{seed}.csv", "committed")
        sandbox.age(f"results/scores/joint-miniature-{seed}.csv", 60)
    sandbox.write("results/scores/fairness-miniature-0.csv", "committed")
    names = [f"{experiment}-miniature-{seed}" for experiment in ("base", "joint") for seed in range(3)]
    called = sandbox.calls("reproduce-joint")
    assert called[:6] == [train(name) for name in names]
    assert sorted(called[6:12]) == [score(name) for name in names]
    everything = sorted([*names, "fairness-miniature-0"])
    assert called[12:] == [table(*everything), report(*everything)]


def test_reproduce_with_settings_leaves_the_base_alone(sandbox: Sandbox) -> None:
    called = sandbox.calls("reproduce-joint", "SEEDS=0", "SET=iterations=2")
    names = ("base-miniature-0", "joint-miniature-0")
    assert called[:2] == [train(names[0]), train(names[1], more=" --set iterations=2")]
    assert called[2:] == [*map(score, names), table(*names), report(*names)]
    assert sandbox.calls("reproduce-base", "SEEDS=0") == [table(*names), report(*names)]


def test_reproduce_is_all_of_them(sandbox: Sandbox) -> None:
    names = [f"{experiment}-miniature-{seed}" for experiment in EXPERIMENTS for seed in (0, 1)]
    called = sandbox.calls("reproduce", "SEEDS=0 1")
    assert called == [*map(train, names), *map(score, names), table(*names), report(*names)]


def test_demo_keeps_to_its_own_folder(sandbox: Sandbox) -> None:
    kept = {}
    for name in (
        "results/scores/joint-miniature-0.csv",
        "results/table.md",
        "results/runs/joint-miniature-0/run.json",
    ):
        kept[name] = sandbox.write(name, "committed").stat().st_mtime_ns
    results, names = "results/demo", ("base-miniature-0", "joint-miniature-0")
    log = sandbox.folder / "calls"
    printed = sandbox.make("demo", "SEEDS=7", "ON=sd15", "SET=iterations=9")
    assert log.read_text().splitlines() == [
        train(names[0], results),
        train(
            names[1],
            results,
            " --set iterations=24 --set update.lr=1e-4"
            " --set tasks.imagereward.batch=96 --set tasks.compositionality.batch=96",
        ),
        *(score(name, results) for name in names),
        table(*names, results=results),
        report(*names, results=results),
    ]
    for name, when in kept.items():
        assert (sandbox.folder / name).stat().st_mtime_ns == when
        assert (sandbox.folder / name).read_text() == "committed"
    assert "results/demo/table.md\n" in printed
    assert "results/demo/report.html" in printed


# nothing is lost


def test_a_failed_run_keeps_its_state_and_goes_on(sandbox: Sandbox) -> None:
    sandbox.write("fail")
    sandbox.make("train-joint", fails=True)
    assert (sandbox.folder / "results/runs/joint-miniature-0/state/latest").exists()
    (sandbox.folder / "fail").unlink()
    assert sandbox.calls("train-joint") == [train("joint-miniature-0")]


def test_sigterm_reaches_the_trainer_and_keeps_its_state(sandbox: Sandbox) -> None:
    sandbox.write("hang")
    process = subprocess.Popen(
        ["make", "train-joint"],
        cwd=sandbox.folder,
        env=sandbox.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 30
    while not (sandbox.folder / "hanging").exists() and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) != 0
    assert (sandbox.folder / "calls").read_text().splitlines()[-1] == "stopped"
    assert (sandbox.folder / "results/runs/joint-miniature-0/state/latest").exists()
    assert not (sandbox.folder / "results/runs/joint-miniature-0/run.json").exists()


def test_environment_is_made_once_and_again_when_the_lock_changes(sandbox: Sandbox) -> None:
    sandbox.program(".ci/setup", "#!/bin/sh\necho setup $PYTHON >> calls\n")
    assert sandbox.calls("test", "PYTHON=python3.12") == ["setup python3.12", f"-m pytest -q -rs {PARALLEL}"]
    assert sandbox.calls("test") == [f"-m pytest -q -rs {PARALLEL}"]
    sandbox.age(".venv/.complete", 60)
    sandbox.age(".ci/setup", 90)
    sandbox.write("requirements.lock", "changed")
    assert sandbox.calls("test") == ["setup", f"-m pytest -q -rs {PARALLEL}"]


def test_the_environment_of_parity_is_made_when_its_lock_changes(sandbox: Sandbox) -> None:
    assert sandbox.calls("parity") == ["-m tests.parity"]
    sandbox.age(".venv-parity/.complete", 60)
    sandbox.write("tests/parity/requirements.lock", "changed")
    made = sandbox.calls("parity")
    assert [call.split(" --")[0] for call in made] == ["-m uv venv", "-m uv pip install", "-m tests.parity"]
    assert made[1].endswith(
        "--python .venv-parity/bin/python --require-hashes -r tests/parity/requirements.lock"
    )
    assert sandbox.calls("parity") == ["-m tests.parity"]


def test_a_failed_setup_stops_there(sandbox: Sandbox) -> None:
    sandbox.program(".ci/setup", "#!/bin/sh\nexit 2\n")
    assert sandbox.calls("train-joint", fails=True) == []


def test_ci_runs_the_test_command_from_anywhere_without_input(sandbox: Sandbox) -> None:
    shutil.copy(ROOT / ".ci" / "run", sandbox.folder / ".ci" / "run")
    run = subprocess.run(
        [sandbox.folder / ".ci" / "run"],
        cwd="/",
        env=sandbox.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (sandbox.folder / "calls").read_text() == f"-m pytest -q -rs {PARALLEL}\n-m tests.parity\n"
