from __future__ import annotations

import hashlib
import json
import re
import sys
import unicodedata
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import prompts
from prompts import Prompt

SETS = sorted(path.stem for path in prompts.HERE.glob("*.jsonl"))


def write(folder: Path, *records: Any, name: str = "set.jsonl") -> Path:
    """A prompt file; a record that is a string is written as it is."""
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def refusal(path: Path | str) -> str:
    """The message with which `path` is refused: one sentence."""
    with pytest.raises(ValueError) as caught:
        prompts.load(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


# the files that ship


@pytest.mark.parametrize("name", SETS)
def test_shipped_set_is_valid_and_asks_no_scene_twice(name: str) -> None:
    loaded = prompts.load(name)
    repeats = name == "miniature-preference-train"
    once = [p for p in loaded if not (repeats and "portrait" in p.tags)]
    assert len({prompts.normalised(prompt.text) for prompt in once}) == len(once)
    assert len({prompt.id for prompt in loaded}) == len(loaded)


def test_preference_prompts_are_three_scenes_to_one_portrait() -> None:
    for name in ("miniature-preference-train", "miniature-preference-unseen"):
        loaded = prompts.load(name)
        portraits = [prompt.text for prompt in loaded if "portrait" in prompt.tags]
        assert 4 * len(portraits) == len(loaded)
        assert len({portraits.count(text) for text in portraits}) == 1, "every occupation as often"


@pytest.mark.parametrize("name", [name for name in SETS if name.endswith("-unseen")])
def test_evaluation_prompts_are_not_trained_on(name: str) -> None:
    asked = {prompts.normalised(prompt.text) for prompt in prompts.load(name)}
    for training in (other for other in SETS if other.endswith("-train")):
        assert not asked & {prompts.normalised(prompt.text) for prompt in prompts.load(training)}, training


def test_the_listing_is_the_registry() -> None:
    files = (prompts.HERE / "sets").glob("[!_]*.py")
    families = [import_module(f"prompts.sets.{path.stem}").SETS for path in files]
    assert list(prompts.names()) == sorted([*SETS, *(name for family in families for name in family)])
    assert len(set(prompts.names())) == len(prompts.names()), "a name is there twice"
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in prompts.names())
    assert len(SETS) >= 6


def test_every_set_has_source_and_licence() -> None:
    found = list(prompts.sources())
    assert [one.prompt_set for one in found] == list(prompts.names())
    assert all(one.source and one.licence for one in found)
    licences = {one.prompt_set: one.licence for one in found}
    assert licences["diffusiondb-train"] == "CC0-1.0"
    assert licences["miniature-scenes-train"] == "Apache-2.0"


# reading


def test_jsonl(tmp_path: Path) -> None:
    expect = {"objects": [{"colour": "red", "shape": "circle"}]}
    path = write(
        tmp_path,
        {"id": "a", "text": " a red circle ", "tags": ["x", "y"], "expect": expect},
        {"id": "b", "text": "b"},
    )
    first, second = prompts.load(path)
    assert (first.id, first.text, first.tags, first.expect) == ("a", " a red circle ", ("x", "y"), expect)
    assert second == Prompt("b", "b")
    assert prompts.load(str(path)) == (first, second)
    assert len({first, second, first}) == 2, "a prompt is hashable"


def test_txt_is_one_prompt_a_line_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("a cat\r\n\n  a café  \n".encode())
    assert prompts.load(path) == (Prompt("00001", "a cat"), Prompt("00003", "a café"))


def test_byte_order_mark_and_line_separators_inside_a_string(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes('\ufeff{"id": "a", "text": "one\u2028two"}\r\n'.encode())
    assert prompts.load(path) == (Prompt("a", "one\u2028two"),)


# digest


def test_digest_depends_on_content_and_order_and_nothing_else(tmp_path: Path) -> None:
    one, two = Prompt("a", "é", ("t",), {"x": 1, "y": 2}), Prompt("b", "b")
    spaced = write(tmp_path, '{"expect":{"y":2,"x":1},  "text":"\\u00e9","id":"a","tags":["t"]}')
    assert prompts.digest([one]) == prompts.digest(prompts.load(spaced))
    others = [
        [one, two],
        [two, one],
        [two],
        [Prompt("b", "c")],
        [Prompt("b", "b", ("t",))],
        [Prompt("b", "b", (), {"x": 1})],
    ]
    assert len({prompts.digest(other) for other in others}) == len(others)


def test_digest_is_the_hash_of_canonical_json() -> None:
    """Run cards hold it: were it made otherwise, every earlier run would look as if its prompts had changed."""
    canonical = '[{"expect":{"count":1},"id":"a","tags":["t"],"text":"a café"}]'
    expected = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    assert prompts.digest([Prompt("a", "a café", ("t",), {"count": 1})]) == expected


def test_digests_of_earlier_runs_stay() -> None:
    assert prompts.digest(prompts.load("miniature-scenes-train")) == "21d18a237e4a"
    assert prompts.digest(prompts.load("miniature-portraits-unseen")) == "d4415f97ff7f"


# many prompts


def numbered(count: int, recipe: str = "numbers") -> prompts.LazyPrompts:
    return prompts.LazyPrompts(lambda number: Prompt(str(number), f"number {number}"), count, recipe)


def test_lazy_prompts_are_a_sequence() -> None:
    lazy, whole = numbered(10), [Prompt(str(n), f"number {n}") for n in range(10)]
    assert list(lazy) == whole
    assert (len(lazy), lazy[3], lazy[-1]) == (10, whole[3], whole[-1])
    for part in (slice(2, 5), slice(None, None, 3), slice(-3, None), slice(None, None, -1), slice(7, 2)):
        assert list(lazy[part]) == whole[part]
    assert list(lazy[2:9][1:3]) == whole[2:9][1:3]
    assert whole[4] in lazy
    for beyond in (10, -11):
        with pytest.raises(IndexError):
            lazy[beyond]


def test_lazy_prompts_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []

    def make(number: int) -> Prompt:
        made.append(number)
        return Prompt(str(number), "text")

    lazy = prompts.LazyPrompts(make, 10**9, "many")
    part = lazy[:: 10**6]
    assert (len(lazy), len(part), made) == (10**9, 1000, [])
    assert part[2].id == "2000000"
    assert made == [2_000_000]
    assert len(prompts.digest(lazy)) == 12
    assert made == [2_000_000], "not even for the digest"


def test_digest_of_lazy_prompts_is_of_recipe_and_part() -> None:
    lazy = numbered(10)
    assert prompts.digest(lazy) == prompts.digest(numbered(10)) == prompts.digest(lazy[:])
    others = [lazy, lazy[1:], lazy[:5], lazy[::2], numbered(11), numbered(10, "other")]
    assert len({prompts.digest(other) for other in others}) == len(others)


def test_normalised_is_the_words() -> None:
    assert prompts.normalised("  A  Cat,\non—the_mat! ") == prompts.normalised("a cat on the mat")
    assert prompts.normalised("STRASSE") == prompts.normalised("straße")
    assert prompts.normalised("cafe\u0301 noir") == prompts.normalised("CAFÉ noir") == "café noir"
    assert prompts.normalised("ａ　ｃａｔ") == "a cat"
    assert prompts.normalised("a cat") != prompts.normalised("a cats")
    assert prompts.normalised("(!)") == ""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a cat\u200bfish", "a catfish"),
        ("\ufeffa t\u00adshirt", "a tshirt"),
        ("\u202aa cat\u202c", "a cat"),
        ("cafe\u200d\u0301", "café"),
        ("می\u200cخواهم", "میخواهم"),
        ("don\u2019t", "don't"),
        ("don\u02bct", "don't"),
        ("don\u00b4t", "don't"),
        ("Hawai\u02bbi", "Hawai\u2018i"),
        ("a red\u2013blue \u2212 cat", "a red-blue - cat"),
        ("a\u00a0cat\u2003\u3000on\u2028a mat", "a cat on a mat"),
        ("x\u0302 and q\u0323\u0307", "X\u0302 AND Q\u0307\u0323"),  # of no composed form, in any order
        ("\u2764\ufe0f a cat", "a cat"),
        ("\u0301a cat", "a cat"),
    ],
)  # fmt: skip
def test_one_text_however_it_is_typed(one: str, other: str) -> None:
    assert prompts.normalised(one) == prompts.normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("दिन", "दान"),  # day and gift: vowels are marks
        ("दिन", "द न"),
        ("ที่", "ทุ"),
        ("عَلِمَ", "عُلِمَ"),  # he knew, it was known
        ("x\u0302y", "xy"),
        ("x\u0302y", "x y"),
        ("café", "cafe"),
    ],
)
def test_words_that_differ_in_their_marks_are_two(one: str, other: str) -> None:
    assert prompts.normalised(one) != prompts.normalised(other)
    assert " " not in prompts.normalised(one), "and a mark does not cut its word in two"


def test_no_character_has_two_forms_that_are_two_texts() -> None:
    """Every character of Unicode inside a word, but for most of the ideographs and syllables, which are alike."""
    many = {*range(0x3400, 0x9FFF), *range(0xAC00, 0xD7A4), *range(0x20000, 0x33480)}
    for point in range(sys.maxunicode + 1):
        if (point in many and point % 97) or unicodedata.category(chr(point)) in ("Cn", "Co", "Cs"):
            continue
        text = f"a{chr(point)}b"
        found = prompts.normalised(text)
        written = {unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")}
        assert {prompts.normalised(one) for one in (found, text.casefold(), *written)} == {found}, hex(point)


# what is refused


def test_unknown_name_lists_the_choices() -> None:
    message = refusal("miniature-scenes")
    assert "'miniature-scenes'" in message
    assert all(name in message for name in prompts.names())


@pytest.mark.parametrize("name", ["nothing.jsonl", "nothing.txt"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    assert (
        refusal(tmp_path / name)
        == f"{tmp_path / name}: the prompt file cannot be read (no such file or directory)"
    )


def test_a_file_of_another_kind_is_told_from_an_unknown_set(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("id,text\n1,a cat\n")
    said = f"{tmp_path / 'mine.csv'} is no file of prompts: give a .jsonl "
    assert refusal(tmp_path / "mine.csv").startswith(said)


def test_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert "cannot be read (is a directory)" in refusal(tmp_path / "a.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt"])
def test_empty(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path) == f"{path}: no prompts in this file"


@pytest.mark.parametrize("name", ["latin.jsonl", "latin.txt"])
def test_not_utf8(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"id": "a", "text": "a"}\n{"id": "b", "text": "caf\xe9"}\n')
    assert refusal(path) == f"{path}:2: not UTF-8 (byte 0xe9)"


GOOD = {"id": "a", "text": "a cat"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"id": "b", "text": "cut o', "not a JSON object (Unterminated string"),
        ("a cat", "not a JSON object (Expecting value"),
        ("[" * 100_000, "not a JSON object (maximum recursion"),
        ('["b", "a cat"]', "not a JSON object but a list"),
        ("null", "not a JSON object but a NoneType"),
        (
            {"id": "b", "text": "b", "prompt": "b"},
            "unknown key 'prompt', the keys are id, text, tags, expect",
        ),
        ({"text": "b"}, "'id' must be"),
        ({"id": 7, "text": "b"}, "'id' must be"),
        ({"id": "", "text": "b"}, "'id' must be"),
        ({"id": "../b", "text": "b"}, "'id' must be"),
        ({"id": "b/c", "text": "b"}, "'id' must be"),
        ({"id": "b\n", "text": "b"}, "'id' must be"),
        ({"id": "b" * 101, "text": "b"}, "'id' must be"),
        ({"id": "b"}, "'text' must be a string that is not blank, but is None"),
        ({"id": "b", "text": " "}, "'text' must be a string that is not blank"),
        ('{"id": "b", "text": "a \\ud800"}', "'text' holds half a character ('\\ud800')"),
        ({"id": "b", "text": "b", "tags": "scene"}, "'tags' must be a list of strings, but is 'scene'"),
        ({"id": "b", "text": "b", "tags": [1]}, "'tags' must be a list of strings"),
        ({"id": "b", "text": "b", "expect": []}, "'expect' must be a JSON object, but is []"),
    ],
)
def test_broken_line_is_named(tmp_path: Path, line: Any, says: str) -> None:
    path = write(tmp_path, GOOD, "", line)
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert says in message


def test_duplicate_id(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, {"id": "b", "text": "b"}, {"id": "a", "text": "another"})
    assert refusal(path) == f"{path}: the id 'a' is there more than once"
