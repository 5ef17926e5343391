"""DiffusionDB's prompt sets, on a table of the same form that is made here: repeated, unsafe, empty rows, and what others evaluate on."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import prompts
from prompts import normalised
from prompts.fetched import File
from prompts.sets import diffusiondb
from train.config import Reward, Task
from train.data import _permutation, positions, prompts_of

ROOT = Path(__file__).parent.parent
TEST = 20
KEPT_OUT = ("occupations", "composition-seen")
TASK = Task("preference", "diffusiondb-train", (Reward("imagereward"),), batch=12, images_per_prompt=1)


def rows() -> list[tuple[Any, float]]:
    """Prompts and scores: 300 texts, some written in several ways, some unsafe."""
    rng = random.Random(7)
    texts = [f"a castle of {rng.choice(('ice', 'sand', 'glass'))}, number {n}, by night" for n in range(300)]
    found = [(text, 0.4 * rng.random()) for text in texts]
    found += [(text.upper().replace(",", "  "), 0.1) for text in texts[:100]] + [(texts[0], 0.1)] * 3
    found += [(f"something unsafe {n}", 0.5 + 0.5 * rng.random()) for n in range(50)] + [("just at it", 0.5)]
    found += [
        ("", 0.0),
        (None, 0.0),
        (" \n", 0.0),
        ("!!!", 0.0),
        ("une forêt enchantée", 0.0),
        ("魔法の森", 0.0),
    ]
    found += [(p.text.upper() + "!", 0.0) for name in KEPT_OUT for p in list(prompts.load(name))[:15]]
    rng.shuffle(found)
    return found


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder with the table, which the sets are read from."""
    path = tmp_path / "mine" / "diffusiondb" / "metadata.parquet"
    path.parent.mkdir(parents=True)
    frame = pd.DataFrame(rows(), columns=["prompt", "prompt_nsfw"]).astype({"prompt_nsfw": "float32"})
    frame.assign(user_name="somebody", seed=1).to_parquet(path, row_group_size=128)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        diffusiondb, "FILE", File("https://example.org/x", {"diffusiondb/metadata.parquet": sha256})
    )
    monkeypatch.setattr(diffusiondb, "TEST", TEST)
    monkeypatch.setattr(diffusiondb, "KEPT_OUT", KEPT_OUT)
    return path


def in_another_process(table: Path, program: str) -> subprocess.Popen[str]:
    """A program that finds the same table, in a fresh Python."""
    settings = json.dumps([{k: str(v) for k, v in diffusiondb.FILE.kept.items()}, TEST, KEPT_OUT, str(table)])
    begin = f"""
import json, sys
from prompts.fetched import File
from prompts.sets import diffusiondb
kept, diffusiondb.TEST, diffusiondb.KEPT_OUT, table = json.loads({settings!r})
diffusiondb.FILE = File("https://example.org/x", kept)
"""
    return subprocess.Popen(
        [sys.executable, "-c", begin + program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def numbers(asked: Sequence[prompts.Prompt]) -> list[int]:
    return [int(prompt.id) for prompt in asked]


# the default split


def test_default_split_has_each_safe_text_once(table: Path) -> None:
    train, test = prompts.load("diffusiondb-train"), prompts.load("diffusiondb-test")
    frame = pd.read_parquet(table).fillna({"prompt": ""})
    words = frame["prompt"].map(normalised)
    kept_out = {normalised(p.text) for name in KEPT_OUT for p in prompts.load(name)}
    safe = frame[(frame["prompt_nsfw"] < 0.5) & (words != "") & ~words.isin(kept_out)]
    first = safe[~words[safe.index].duplicated()]
    assert sorted(numbers(train) + numbers(test)) == list(first.index)
    assert len(first) == 302 and len(test) == TEST
    assert all(frame["prompt"][int(p.id)] == p.text for part in (train, test) for p in part)
    assert numbers(train) == sorted(numbers(train)), "in the order of the table"
    assert not {normalised(p.text) for p in train} & {normalised(p.text) for p in test}


def test_the_test_part_depends_on_the_texts_alone(table: Path) -> None:
    texts, scores = zip(*rows(), strict=True)
    texts = tuple(text or "" for text in texts)
    test = {normalised(texts[row]) for row in diffusiondb.split_unique(texts, scores, [])[1]}
    back = diffusiondb.split_unique(texts[::-1], scores[::-1], [])[1]
    assert {normalised(texts[::-1][row]) for row in back} == test
    lowest = sorted(normalised(p.text) for p in prompts.load("diffusiondb-test"))
    pool = [*prompts.load("diffusiondb-train"), *prompts.load("diffusiondb-test")]
    assert lowest == sorted(
        sorted((normalised(p.text) for p in pool), key=lambda t: hashlib.sha256(t.encode()).digest())[:TEST]
    )


def test_an_accent_in_one_piece_or_in_two_is_one_text() -> None:
    """What an evaluation asks is kept out, and what is trained on is not tested, also where a row was typed on another system."""
    texts = ["une forêt enchantée", unicodedata.normalize("NFD", "une forêt enchantée"), "Crème brûlée"]
    kept_out = [diffusiondb.key(unicodedata.normalize("NFD", "crème brûlée"))]
    train, test = diffusiondb.split_unique(texts, [0.0] * 3, kept_out)
    assert train + test == [0]


def test_words_of_scripts_whose_vowels_are_marks_are_kept_apart_and_unseen_characters_hide_nothing() -> None:
    texts = ["दिन", "दान", "दू\u200bन", "दून", "a cat\u200b, by night", "a cat by night", "a dog"]
    train, test = diffusiondb.split_unique(texts, [0.0] * len(texts), [diffusiondb.key("a d\u00adog")])
    assert sorted(train + test) == [0, 1, 2, 4]


def test_an_unknown_score_is_unsafe() -> None:
    texts = [f"text {n}" for n in range(30)]
    scores = [None, float("nan"), *[0.1] * 28]
    train, test = diffusiondb.split_unique(texts, scores, [])
    assert sorted(train + test) == list(range(2, 30))


# the released split


def test_released_split_is_the_shuffle_of_the_released_code(table: Path) -> None:
    frame = pd.read_parquet(table).fillna({"prompt": ""})
    program = f"import random; random.seed(1928); rows = list(range({len(frame)})); random.shuffle(rows); print(rows)"
    shuffled = json.loads(subprocess.check_output([sys.executable, "-c", program], text=True))
    train, test = prompts.load("diffusiondb-train-released"), prompts.load("diffusiondb-test-released")
    assert numbers(train) == shuffled[:-TEST]
    assert numbers(test) == shuffled[-TEST:]
    assert [p.text for p in test] == [frame["prompt"][row] for row in shuffled[-TEST:]]
    leaks = {normalised(p.text) for p in train} & {normalised(p.text) for p in test}
    assert leaks, "nothing is taken out: why it is not the default"


# as a lazy sequence


def test_prompts_are_mapped_into_memory_not_read(table: Path) -> None:
    import pyarrow as pa

    prompts.load("diffusiondb-train")  # made
    before = pa.total_allocated_bytes()
    lazy = prompts.load("diffusiondb-train")
    assert isinstance(lazy, prompts.LazyPrompts)
    assert pa.total_allocated_bytes() - before < 1000, "bytes for some 300 texts"
    few = lazy[10:20]
    assert [few[n].id for n in range(10)] == [lazy[10 + n].id for n in range(10)]
    assert lazy[-1] == lazy[len(lazy) - 1]


def test_digests_tell_the_sets_and_their_settings_apart(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [prompts.digest(prompts.load(name)) for name in diffusiondb.SETS]
    assert found == [prompts.digest(prompts.load(name)) for name in diffusiondb.SETS]
    for setting, value in (("NSFW", 0.2), ("TEST", 10), ("KEPT_OUT", ("occupations",))):
        with monkeypatch.context() as changed:
            changed.setattr(diffusiondb, setting, value)
            found.append(prompts.digest(prompts.load("diffusiondb-train")))
    assert len(set(found)) == 7


def test_a_resumed_run_is_asked_the_same(table: Path) -> None:
    """The iteration number is the whole cursor: what iteration 40, in the second pass, asks is the same in a Python that begins there."""
    lazy = prompts.load("diffusiondb-train")
    assert len(lazy) < 40 * 12 < 2 * len(lazy)
    before = [prompts_of(TASK, lazy, 3, iteration) for iteration in range(41)][40]
    _permutation.cache_clear()
    assert prompts_of(TASK, prompts.load("diffusiondb-train"), 3, 40) == before
    program = f"""
import prompts
lazy = prompts.load("diffusiondb-train")
print(json.dumps([[lazy[n].id, lazy[n].text] for n in {positions(len(lazy), 480, 12, "prompts", 3, TASK.name)}]))
"""
    answer, complaint = in_another_process(table, program).communicate()
    assert json.loads(answer) == [[prompt.id, prompt.text] for prompt in before]
    assert complaint == "", "nothing is prepared a second time"


def test_every_prompt_is_asked_once_in_a_pass(table: Path) -> None:
    lazy = prompts.load("diffusiondb-train")
    asked = [p.id for iteration in range(len(lazy) // 12) for p in prompts_of(TASK, lazy, 0, iteration)]
    assert len(set(asked)) == len(asked) == len(lazy) // 12 * 12


def test_of_two_processes_one_prepares(table: Path, tmp_path: Path) -> None:
    program = """
import os, time, pathlib, prompts, datasets
ready = pathlib.Path(table).parent / f"ready {os.getpid()}"
ready.touch()
while len(list(ready.parent.glob("ready *"))) < 2:
    time.sleep(0.01)
print(json.dumps([p.text for p in prompts.load("diffusiondb-test")]))
"""
    both = [in_another_process(table, program) for _ in range(2)]
    answers = [process.communicate() for process in both]
    assert answers[0][0] == answers[1][0] != ""
    assert "".join(complaint for _, complaint in answers) == f"preparing the prompts of {table}, once\n"


# what is refused


def refusal(name: str) -> str:
    with pytest.raises(ValueError) as caught:
        prompts.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_table(table: Path) -> None:
    table.write_bytes(table.read_bytes()[:-1])
    assert refusal("diffusiondb-train").startswith(f"{table} is not the file that is expected (SHA-256")


def test_a_folder_without_the_table(table: Path) -> None:
    table.unlink()
    assert "in which there is no diffusiondb/metadata.parquet" in refusal("diffusiondb-train-released")


def test_all_files_that_are_missing_are_told_at_once_and_why_they_are_needed(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusiondb, "KEPT_OUT", ("occupations", "parti", "geneval"))
    told = refusal("diffusiondb-train")
    assert told.startswith(
        "diffusiondb-train leaves out the prompts that others are evaluated on, and 2 files are not to be had: put parti/PartiPrompts.tsv (https://"
    )
    assert "geneval/evaluation_metadata.jsonl (https://raw.githubusercontent.com/djghosh13/geneval/" in told
    assert "diffusiondb-train-released needs none of them; of the first: T2I_PROMPTS_DIR is " in told
    assert len(prompts.load("diffusiondb-train-released")) > TEST
    table.unlink()
    told = refusal("diffusiondb-train")
    assert "and 3 files are not to be had: " in told
    assert ", diffusiondb/metadata.parquet (https://example.org/x) below a folder" in told
    assert "diffusiondb-train-released needs only the last of them; " in told


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_prepared_prompts_that_are_damaged(table: Path, tmp_path: Path, damage: str) -> None:
    prompts.load("diffusiondb-train")
    (made,) = (tmp_path / "cache" / "t2i-prompts" / "diffusiondb").glob("*/train.arrow")
    content = made.read_bytes()
    made.unlink()
    if damage != "gone":
        made.write_bytes(content[: len(content) // 2] if damage == "cut" else b"something else")
    assert refusal("diffusiondb-train") == f"{made} is damaged: delete {made.parent}, and it is made again"


# the sets as they are


def test_the_table_is_pinned() -> None:
    assert diffusiondb.REVISION in diffusiondb.FILE.url
    assert all(len(sha256) == 64 for sha256 in diffusiondb.FILE.kept.values())


def test_whatever_is_evaluated_is_kept_out_of_training() -> None:
    evaluated: Any = {
        name for name in prompts.names() if "-train" not in name and not name.startswith("miniature-")
    }
    assert evaluated - {"diffusiondb-test", "diffusiondb-test-released"} == set(diffusiondb.KEPT_OUT)
