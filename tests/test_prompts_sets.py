"""The prompt sets that are computed, and those of others where their files are at hand. No network: `fetched` never gets to fetch here."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import prompts
from prompts import Prompt, normalised
from prompts.sets import composition, fairness, geneval, imagereward, parti, t2i_compbench
from prompts.sets._order import draw, stride
from prompts.world import stable_fraction

SHARED = Path(os.environ.get("T2I_PROMPTS_DIR") or Path(__file__).parent.parent.parent / "shared" / "data")
THEIRS = (*parti.SETS, *geneval.SETS, *t2i_compbench.SETS, *imagereward.SETS)
OURS = (*composition.SETS, *fairness.SETS)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of others, or nothing at all."""
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(SHARED))
    return SHARED


def needs_files_of_others() -> None:
    if not (SHARED / "parti" / "PartiPrompts.tsv").is_file():
        pytest.skip(f"the prompt files of others are not in {SHARED}: T2I_PROMPTS_DIR names the folder")


def texts(name: str) -> Iterator[str]:
    return (normalised(prompt.text) for prompt in prompts.load(name))


# the order of computed sets


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 360, 44_900])
def test_stride_meets_every_number_once(size: int) -> None:
    assert sorted(i * stride(size) % size for i in range(size)) == list(range(size))


def test_draw_is_without_repetition_and_uniform() -> None:
    assert sorted(draw("all", 50, 50)) == list(range(50))
    assert draw("a", 20, 1000) == draw("a", 40, 1000)[:20]
    assert draw("a", 20, 1000) != draw("b", 20, 1000)
    thirds = Counter(number * 3 // 3000 for number in draw("uniform", 1500, 3000))
    assert all(count == pytest.approx(500, abs=80) for count in thirds.values())


# compositionality


def objects() -> list[dict[str, str]]:
    with composition.OBJECTS_FILE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_objects_are_the_papers() -> None:
    needs_files_of_others()
    labels = (SHARED / "paper-objects-532.txt").read_text(encoding="utf-8").splitlines()
    assert [row["label"] for row in objects()] == labels
    assert sum(row["label"] != row["name"] for row in objects()) == 8


def test_split_of_objects_is_the_documented_one() -> None:
    groups: dict[str, list[str]] = {}
    for row in objects():
        groups.setdefault(row["same_as"] or row["label"], []).append(row["label"])
    unseen: set[str] = set()
    for first in sorted(groups, key=lambda first: stable_fraction(f"unseen {first}")):
        if len(unseen) + len(groups[first]) <= 82:
            unseen.update(groups[first])
    assert {row["label"] for row in objects() if row["split"] == "unseen"} == unseen
    assert Counter(row["split"] for row in objects()) == {"seen": 450, "unseen": 82}
    assert all(first == min(group) for first, group in groups.items())


@pytest.fixture(scope="module")
def trained() -> set[str]:
    """Every text of composition-train."""
    return set(texts("composition-train"))


def test_articles() -> None:
    assert {row["article"] for row in objects()} == {"a", "an", "plural", "mass"}
    for row in objects():
        if row["article"] in ("a", "an"):
            by_letter = "an" if row["name"][0] in "aeiou" else "a"
            by_sound = {"utility pole": "a", "suv": "an"}.get(row["name"], by_letter)
            assert row["article"] == by_sound, row
        if row["article"] == "plural":
            assert row["name"].endswith("s") or row["name"] == "dice", row
    spaces = [composition.space(split) for split in ("seen", "unseen")]
    phrases = {thing.name: thing.phrase for space in spaces for thing in space.objects}
    assert phrases["apple"] == "an apple"
    assert phrases["chips"] == "chips"  # the paper: "chips beside a blue jay"
    assert phrases["bread"] == "bread"


def test_training_space_of_the_paper() -> None:
    whole = prompts.load("composition-train-paper")
    assert len(whole) == 450 * 449 * 5 == 1_010_250
    space = composition.space("seen")
    names = [thing.name for thing in space.objects]
    for number in (0, 1, 4, 5, 2244, 2245, 777_777, 1_010_249):
        first, second = (thing["name"] for thing in space.prompt(number).expect["objects"])
        relation = space.prompt(number).expect["relation"]
        assert first != second and {first, second} <= set(names)
        assert space.number(first, relation, second) == number
    assert space.prompt(0) == Prompt(
        id="aircraft-and-airplane",
        text="an aircraft and an airplane",
        tags=("composition", "and", "seen"),
        expect={"objects": [{"name": "aircraft"}, {"name": "airplane"}], "relation": "and"},
    )


def test_neighbours_have_nothing_in_common() -> None:
    few = prompts.load("composition-train")[500_000:502_000]
    for one, next_one in pairwise(few):
        for which in (0, 1):
            assert one.expect["objects"][which] != next_one.expect["objects"][which]
        assert one.expect["relation"] != next_one.expect["relation"]


def test_training_is_the_space_less_what_is_evaluated_on(trained: set[str]) -> None:
    space = composition.space("seen")
    left_out = {*composition.evaluated("seen"), *composition.asked_elsewhere()}
    assert (len(composition.evaluated("seen")), len(composition.asked_elsewhere())) == (300, 57)
    assert not trained & {normalised(space.prompt(number).text) for number in left_out}
    # so many different ones, and none of those: all of the rest, each once
    assert len(trained) == len(prompts.load("composition-train")) == 1_010_250 - len(left_out)


def test_evaluation_of_composition() -> None:
    for split, count in (("seen", 450), ("unseen", 82)):
        asked = prompts.load(f"composition-{split}")
        assert len({prompt.text for prompt in asked}) == 300
        known = {thing.name for thing in composition.space(split).objects}
        assert len(known) == count
        assert all(thing["name"] in known for prompt in asked for thing in prompt.expect["objects"])
        assert set(Counter(prompt.expect["relation"] for prompt in asked)) == set(composition.RELATIONS)


def test_prompts_of_others_in_this_form_are_listed() -> None:
    """Found in the files by their words, whatever the article, and compared with the list that keeps them out of training."""
    needs_files_of_others()
    seen = {row["name"] for row in objects() if row["split"] == "seen"}
    found = set()
    for name in THEIRS:
        for text in texts(name):
            for relation in composition.RELATIONS:
                first, _, second = text.partition(f" {relation} ")
                pair = tuple(re.sub(r"^(a|an|the) ", "", side) for side in (first, second))
                if set(pair) <= seen and pair[0] != pair[1]:
                    found.add((pair[0], relation, pair[1]))
    with composition.ELSEWHERE_FILE.open(encoding="utf-8", newline="") as file:
        assert sorted(found) == [tuple(row.values()) for row in csv.DictReader(file)]


# fairness


def test_occupations_are_the_papers() -> None:
    needs_files_of_others()
    listed = (SHARED / "paper-occupations-100.txt").read_text(encoding="utf-8").splitlines()
    assert list(fairness.OCCUPATIONS) == listed
    assert len(listed) == len(set(listed)) == 100


def test_portraits_of_occupations() -> None:
    asked = {prompt.expect["occupation"]: prompt for prompt in prompts.load("occupations")}
    assert len(asked) == 100
    assert asked["optician"].text == "a portrait of an optician"
    assert asked["PR person"].text == "a portrait of a PR person"  # as in the paper, App. G
    assert all(prompt.expect["group"] == "skin_tone" for prompt in asked.values())


_NEVER = """
    african american european asian arab hispanic latino latina indian native aboriginal indigenous caucasian oriental black white brown dark pale
    fair tan tanned light skin skinned ethnic ethnicity race racial tribal foreign immigrant refugee national christian muslim islamic jewish hindu
    buddhist sikh catholic church mosque temple synagogue monk nun priest praying hijab turban sari kimono kippah dreadlocks afro blond blonde
    chinese japanese korean vietnamese thai filipino mexican brazilian nigerian kenyan ethiopian egyptian turkish persian russian german french
    italian spanish english british irish swedish nordic slavic polynesian
"""
NEVER = frozenset(_NEVER.split())


def parts_of_captions() -> set[str]:
    return {word for part in fairness.PARTS for phrase in part for word in normalised(phrase).split()}


def test_captions_of_people_name_no_origin_religion_or_colour_of_a_person() -> None:
    assert not parts_of_captions() & NEVER


def test_captions_of_people_name_no_occupation_that_is_evaluated() -> None:
    captions = prompts.load("persons-train")
    few = [normalised(prompt.text) for prompt in captions[:: len(captions) // 2000]]
    for occupation in fairness.OCCUPATIONS:
        words = rf"\b{normalised(occupation)}s?\b"
        assert not any(re.search(words, caption) for caption in few), occupation
        if " " not in occupation:
            assert occupation not in parts_of_captions()


def test_captions_of_people() -> None:
    captions = prompts.load("persons-train")
    assert len(captions) == 8 * 12 * 24 * 22 * 24
    few = captions[:: len(captions) // 3000]
    assert len({prompt.id for prompt in few}) == len({prompt.text for prompt in few}) == len(few)
    assert captions[0].text == "a photo of a person in a denim jacket, laughing in a park"
    assert captions[0].expect == {"group": "skin_tone"}
    assert Counter(person.split()[-1] for person in fairness.PEOPLE) == {"woman": 4, "man": 4, "person": 4}
    for one, next_one in pairwise(captions[:300]):
        assert one.text.split(",")[0] != next_one.text.split(",")[0]


def test_people_with_objects() -> None:
    asked = prompts.load("person-objects")
    assert len({prompt.text for prompt in asked}) == len(asked) == 200
    for prompt in asked:
        person, thing = prompt.expect["objects"]
        assert person == {"name": "person"}
        assert "a person" in prompt.text and re.search(rf"\ban? {thing['name']}\b", prompt.text)
        assert prompt.expect["group"] == "skin_tone"


# the sets of others


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("parti", 1632),
        ("geneval", 553),
        ("geneval-unseen", 256),
        ("imagereward-test", 466),
        ("imagereward-bench", 100),
        *((name, 300) for name in t2i_compbench.SETS),
    ],
)
def test_sets_of_others(name: str, count: int) -> None:
    needs_files_of_others()
    asked = prompts.load(name)
    assert len({prompt.id for prompt in asked}) == len(asked) == count
    assert all(normalised(prompt.text) for prompt in asked)


def test_files_of_others_are_pinned_as_recorded() -> None:
    """Against the list of commits and hashes that was made beside the files: a typing error would only be seen by who fetches."""
    needs_files_of_others()
    record = (SHARED / "LICENSES.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in record.splitlines()]
    of_path = {row[1]: row[2] for row in rows if len(row) == 3}
    files = [parti.FILE, geneval.FILE, geneval.UNSEEN_FILE, imagereward.TEST_FILE, imagereward.BENCH_FILE]
    for file in (*files, *t2i_compbench.FILES.values()):
        _, _, _, owner, repository, commit, *path = file.url.split("/")
        assert re.search(rf"{owner}/{repository}.*{commit}", record)
        found = next(sha for kept, sha in of_path.items() if kept.split(" ")[0] == "/".join(path))
        assert next(iter(file.kept.values())) == found


def test_what_is_read_of_the_sets_of_others() -> None:
    needs_files_of_others()
    assert prompts.load("parti")[0] == Prompt("0000", "bond", ("Abstract", "Basic"))
    assert any('the word "PEACE" are' in prompt.text for prompt in prompts.load("parti")), (
        "quotation marks stay"
    )
    assert prompts.load("imagereward-bench")[0].id == "005695-0057"
    assert prompts.load("t2i-compbench-3d-spatial")[0] == Prompt(
        "000", "a dog in front of a desk", ("3d_spatial",)
    )
    beside = next(prompt for prompt in prompts.load("geneval") if prompt.tags == ("position",))
    assert beside.text == "a photo of a dog right of a teddy bear"
    assert beside.expect == {
        "objects": [{"name": "teddy bear"}, {"name": "dog"}],
        "tag": "position",
        "include": [
            {"class": "teddy bear", "count": 1},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
    }
    counting = next(prompt for prompt in prompts.load("geneval") if prompt.tags == ("counting",))
    assert counting.expect["exclude"] == [{"class": "clock", "count": 3}]


def test_unseen_prompts_of_geneval_are_read_of_both_forms_of_their_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Upstream's has each line four times; here the derived file is repeated, since the other is not at hand."""
    needs_files_of_others()
    once = (SHARED / "geneval-unseen" / "test_metadata_unique.jsonl").read_text(encoding="utf-8")
    (tmp_path / "geneval-unseen").mkdir()
    upstream = tmp_path / "geneval-unseen" / "test_metadata.jsonl"
    upstream.write_text(once * 4, encoding="utf-8")
    expected = prompts.load("geneval-unseen")
    monkeypatch.setattr("prompts.fetched._check", lambda *_: None)
    monkeypatch.setenv("T2I_PROMPTS_DIR", str(tmp_path))
    assert prompts.load("geneval-unseen") == expected


# training and evaluation

EVALUATED = (*(name for name in OURS if "-train" not in name), *THEIRS)
TRAINED = {"composition-train", "persons-train"}
LEAKING = {"composition-train-paper"}
"""What the paper's own split may do, kept to compare with it."""


def available(names: tuple[str, ...]) -> dict[str, set[str]]:
    found = {}
    for name in names:
        if name in OURS or (SHARED / "parti").is_dir():
            found[name] = set(texts(name))
    return found


def test_every_set_of_photographs_is_for_training_or_for_evaluation() -> None:
    """DiffusionDB's are in test_prompts_diffusiondb.py: they cannot be had without a network."""
    others = {name for name in prompts.names() if not name.startswith(("miniature-", "diffusiondb-"))}
    assert others == {*EVALUATED, *TRAINED, *LEAKING}


def test_composition_is_not_trained_on_what_is_evaluated(trained: set[str]) -> None:
    for name, asked in available(EVALUATED).items():
        assert not trained & asked, name


def test_captions_of_people_are_not_what_is_evaluated() -> None:
    parts = ("|".join(re.escape(normalised(phrase)) for phrase in part) for part in fairness.PARTS)
    caption = re.compile(" ".join(f"({part})" for part in parts))
    few = prompts.load("persons-train")[::10_007]
    assert all(caption.fullmatch(normalised(prompt.text)) for prompt in few)
    for name, asked in available(EVALUATED).items():
        assert not [text for text in asked if caption.fullmatch(text)], name


def test_where_the_papers_split_leaks_it_is_seen() -> None:
    whole = prompts.load("composition-train-paper")
    space, step = composition.space("seen"), stride(len(whole))
    asked = prompts.load("composition-seen")[0]
    number = space.number(
        asked.expect["objects"][0]["name"], asked.expect["relation"], asked.expect["objects"][1]["name"]
    )
    assert whole[number * pow(step, -1, len(whole)) % len(whole)] == asked


# what is pinned: runs were made with these


def test_computed_sets_stay() -> None:
    """A change of the parts that is not told in the recipe would change what a resumed run is asked."""
    sets = {name: prompts.load(name) for name in OURS}
    few = {name: list(asked[:: max(1, len(asked) // 300)]) for name, asked in sets.items()}
    assert {name: (prompts.digest(sets[name]), prompts.digest(few[name])) for name in OURS} == {
        "composition-train": ("86d5b88a9433", "aa2ec7b110bb"),
        "composition-train-paper": ("afeb76b6aed2", "83e96592dbc7"),
        "composition-seen": ("3f14086889a4", "3f14086889a4"),
        "composition-unseen": ("6a170f81e8a7", "6a170f81e8a7"),
        "occupations": ("d167917c63a4", "d167917c63a4"),
        "persons-train": ("90393ba9a291", "60eb6275dc98"),
        "person-objects": ("8d2586872bf6", "8d2586872bf6"),
    }
