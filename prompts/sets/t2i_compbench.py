"""T2I-CompBench, Huang et al. 2023, arXiv 2307.06350: the 300 validation prompts of each of eight categories of composition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from prompts import Prompt
from prompts.fetched import github

COMMIT = "1b7094991a57f3c22abdd4f6e8ba6c1a15517073"
SOURCE = f"Karine-Huang/T2I-CompBench at {COMMIT}"
LICENCE = "MIT, (c) 2023 HKU"

SHA256 = {
    "color": "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
    "shape": "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
    "texture": "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
    "spatial": "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988",
    "3d_spatial": "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9",
    "numeracy": "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe",
    "non_spatial": "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
    "complex": "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4",
}
FILES = {
    category: github(
        "Karine-Huang/T2I-CompBench",
        COMMIT,
        f"examples/dataset/{category}_val.txt",
        {f"t2i-compbench/{category}_val.txt": sha256},
    )
    for category, sha256 in SHA256.items()
}


def _category(category: str) -> tuple[Prompt, ...]:
    lines = FILES[category].path().read_text(encoding="utf-8").splitlines()
    return tuple(Prompt(f"{number:03d}", line.strip(), (category,)) for number, line in enumerate(lines))


SETS: dict[str, Callable[[], Sequence[Prompt]]] = {
    f"t2i-compbench-{category.replace('_', '-')}": partial(_category, category) for category in SHA256
}
