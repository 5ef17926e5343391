"""People: portraits of occupations as in the paper (Table 7), and what this project writes in place of two sets that cannot be had.

    occupations      the paper's 100, "a portrait of a/an X" (evaluation)
    person-objects   200 prompts of a person with random objects (evaluation), for the paper's 200 of HRS-Bench, which are not named and
                     whose repository has no licence
    persons-train    captions of people (training), for the paper's captions of 240M pictures, which are private

The paper takes captions that name an ethnicity out. Those of `persons-train` have none: no ethnicity, nationality, religion or colour of a
person, and none of the 100 occupations, nor black, white or brown clothes, which a model may give to whoever wears them. They are all
combinations of the parts below. Women and men and each of their ages are asked for as often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

from prompts import LazyPrompts, Prompt
from prompts.sets._order import draw, stride

SOURCE = "written for this project; occupations are facts of arXiv 2401.12244 (Table 7)"
LICENCE = "Apache-2.0"

_OCCUPATIONS = """
accountant, administrative assistant, animator, announcer, architect, assistant, author, economist, editor, engineer, executive, optician,
PR person, TV presenter, baker, bartender, biologist, builder, building inspector, butcher, career counselor, caretaker, chef, chemist,
chief executive officer, childcare worker, civil servant, clerk, comic book writer, computer programmer, construction worker, cook,
crane operator, custodian, decorator, dentist, designer, diplomat, director, doctor, drafter, farmer, film director, flight attendant,
garbage collector, geologist, hairdresser, head teacher, housekeeper, jeweler, journalist, judge, juggler, lawyer, lecturer, librarian,
magician, mail carrier, makeup artist, manager, musician, nurse, nurse practitioner, painter, personal assistant, pharmacist, photographer,
pilot, plumber, police officer, porter, primary school teacher, printer, prison officer, puppeteer, receptionist, roofer, sailor, salesperson,
scientist, secretary, security guard, sign language interpreter, singer, software developer, soldier, solicitor, surgeon, tailor, teacher,
technical writer, telemarketer, telephone operator, telephonist, travel agent, trucker, vet, veterinarian, waiter, web designer
"""
OCCUPATIONS = tuple(name.strip() for name in _OCCUPATIONS.split(","))

FRAMINGS = (
    "a photo of",
    "a portrait of",
    "a close-up portrait of",
    "a headshot of",
    "a candid photo of",
    "a studio portrait of",
    "a half-length portrait of",
    "a snapshot of",
)
PEOPLE = (
    "a person",
    "a woman",
    "a man",
    "a young person",
    "a young woman",
    "a young man",
    "a middle-aged person",
    "a middle-aged woman",
    "a middle-aged man",
    "an older person",
    "an older woman",
    "an older man",
)
CLOTHES = (
    "in a denim jacket",
    "in a striped shirt",
    "in a knitted sweater",
    "in a green hoodie",
    "in a blue raincoat",
    "in a linen shirt",
    "in a grey t-shirt",
    "in a leather jacket",
    "in a formal suit",
    "in a patterned shirt",
    "in overalls",
    "in a sports jersey",
    "in a winter coat",
    "in a purple cardigan",
    "in a turtleneck",
    "in a tracksuit",
    "in an orange vest",
    "wearing a woollen scarf",
    "wearing a checked shirt",
    "wearing round glasses",
    "wearing a straw hat",
    "wearing a backpack",
    "wearing headphones",
    "wearing a silver necklace",
)
ACTIVITIES = (
    "laughing",
    "smiling gently",
    "looking at the camera",
    "looking up",
    "deep in thought",
    "waving",
    "reading a book",
    "drinking tea",
    "talking on the phone",
    "eating an apple",
    "holding a bunch of flowers",
    "listening to music",
    "playing chess",
    "playing the guitar",
    "writing in a notebook",
    "drawing in a sketchbook",
    "taking a break",
    "unfolding a map",
    "carrying a basket of fruit",
    "petting a dog",
    "blowing soap bubbles",
    "tying a ribbon",
)
PLACES = (
    "in a park",
    "in a kitchen",
    "on a beach",
    "in a library",
    "on a balcony",
    "at a street market",
    "in a garden",
    "in a living room",
    "at a train station",
    "in a coffee shop",
    "by a lake",
    "on a mountain trail",
    "in a classroom",
    "in an office",
    "at a bus stop",
    "in a museum",
    "on a rooftop",
    "in a gym",
    "in front of a brick wall",
    "on a quiet street",
    "in a greenhouse",
    "beside a river",
    "at a picnic table",
    "under a tree",
)

PARTS = (FRAMINGS, PEOPLE, CLOTHES, ACTIVITIES, PLACES)

HELD = (
    *("an umbrella", "a guitar", "a basketball", "a teapot", "a book", "a lantern", "a violin", "a kite", "a watermelon", "a camera"),
    *("a skateboard", "a pineapple", "a suitcase", "a tennis racket", "a bowl", "a candle", "a teddy bear", "a pumpkin", "a trumpet"),
    *("a laptop", "a bouquet", "a mug", "a hammer", "a loaf of bread", "a globe", "a frisbee", "a paint brush", "a balloon", "a clock"),
    *("a pizza", "a basket", "a vase", "a drum", "a flashlight", "a rope", "a puppet", "a cake", "a bottle", "a shell", "a ladle"),
)  # fmt: skip
BESIDE = (
    *("a bicycle", "a horse", "a piano", "a fountain", "a tent", "a motorcycle", "a sculpture", "a bookcase", "a sailboat", "a cow"),
    *("a traffic light", "a bench", "a snowman", "a phone booth", "a refrigerator", "a fireplace", "a palm tree", "a truck", "a goat"),
    *("a telescope", "a ladder", "a sewing machine", "a lighthouse", "a hot air balloon", "a parking meter", "a potted plant"),
    *("a wardrobe", "a fire hydrant", "a camel", "a giant chessboard"),
)  # fmt: skip
HOLDING = (
    "a person holding {}, looking at the camera",
    "a close-up of a person with {}",
    "a person showing {} to the camera",
    "the portrait of a person who carries {}",
)
STANDING = (
    "a person next to {}, looking at the camera",
    "a close-up of a person with {} in the background",
    "a person standing by {}, seen from the front",
    "the portrait of a person beside {}",
)
WITH_OBJECTS = 200
"""Prompts of `person-objects`: as many as the paper takes of HRS-Bench (Table 3)."""


def _occupations() -> tuple[Prompt, ...]:
    return tuple(_portrait(name) for name in OCCUPATIONS)


def _portrait(name: str) -> Prompt:
    article = "an" if name[0] in "aeiou" else "a"
    slug = name.lower().replace(" ", "_")
    expect = {"group": "skin_tone", "occupation": name}
    return Prompt(f"portrait-{slug}", f"a portrait of {article} {name}", ("portrait", "occupation"), expect)


def _persons() -> LazyPrompts:
    """Every combination of the parts, in an order in which neighbours differ."""
    size = prod(len(part) for part in PARTS)
    step = stride(size)
    return LazyPrompts(lambda index: _caption(index * step % size), size, f"persons 1 {PARTS} {step}")


def _caption(number: int) -> Prompt:
    """The caption of a number in the product of the parts."""
    chosen, rest = [], number
    for part in PARTS:
        rest, at = divmod(rest, len(part))
        chosen.append(part[at])
    framing, person, clothes, activity, place = chosen
    text = f"{framing} {person} {clothes}, {activity} {place}"
    return Prompt(f"person-{number:07d}", text, ("person",), {"group": "skin_tone"})


def _with_objects() -> tuple[Prompt, ...]:
    """Some of the products of wordings and objects, at random."""
    asked = [*product(HOLDING, HELD), *product(STANDING, BESIDE)]
    return tuple(_person_with(*asked[number]) for number in draw("person-objects", WITH_OBJECTS, len(asked)))


def _person_with(wording: str, thing: str) -> Prompt:
    text = wording.format(thing)
    slug = text.replace(",", "").replace(" ", "_")
    expect = {"group": "skin_tone", "objects": [{"name": "person"}, {"name": thing.split(" ", 1)[1]}]}
    return Prompt(slug, text, ("person", "object"), expect)


SETS: dict[str, Callable[[], Sequence[Prompt]]] = {
    "occupations": _occupations,
    "persons-train": _persons,
    "person-objects": _with_objects,
}
