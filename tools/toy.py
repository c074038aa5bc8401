"""Walk every balancer over the 2-D toy problem as the papers do, and draw it: docs/toy.md.

``python tools/toy.py`` walks what is not in docs/images/toy.json yet (an hour for all) and draws; ``python tools/toy.py
KEY ...`` walks these anew; ``--draw`` only draws.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from balancers.cases import BY_KEY  # noqa: E402 - the tests are no package
from balancers.toy_run import walk  # noqa: E402
from counterpoint.testing import TOY_SETUPS, toy_pareto_distance  # noqa: E402

DATA = ROOT / "docs" / "images" / "toy.json"
SETUP = "nash_mtl"
REST = 500  # steps over which a point at rest moves by less than the step size
LATE = 5_000  # steps at the end that tell whether a point still moves
NEAR = 0.2  # distance from the Pareto set that counts as there
COARSE = 0.05  # a drawn line is this near to the points


def at_rest(visited: list[list[float]]) -> bool:
    """Tell whether the last points hardly differ."""
    if len(visited) <= REST:
        return False
    return float(np.ptp(np.array(visited[-REST:]), axis=0).max()) < TOY_SETUPS[SETUP].rate


def thinned(points: np.ndarray) -> np.ndarray:
    """Return the points of a line that stays within ``COARSE`` of all (Douglas and Peucker)."""
    keep, stack = {0, len(points) - 1}, [(0, len(points) - 1)]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        along, inner = points[last] - points[first], points[first + 1 : last] - points[first]
        length = float(np.hypot(*along))
        across = np.hypot(*inner.T) if length == 0 else abs(inner @ np.array([-along[1], along[0]])) / length
        far = int(across.argmax())
        if across[far] > COARSE:
            middle = first + 1 + far
            keep.add(middle)
            stack += [(first, middle), (middle, last)]
    return points[sorted(keep)]


def record(key: str) -> list[dict]:
    """Walk from every start; return what is drawn and told."""
    setup, found = TOY_SETUPS[SETUP], []
    for start in setup.starts:
        balancer = BY_KEY[key].build(2)
        if balancer.generator is not None:
            balancer.generator.manual_seed(0)
        points = walk(
            balancer,
            start,
            scales=setup.scales,
            steps=setup.steps,
            rate=setup.rate,
            own_rate=setup.own_rate,
            finished=at_rest,
        )
        away = (toy_pareto_distance(points) > NEAR).nonzero().flatten()
        arrived = int(away[-1]) + 1 if len(away) else 0
        found.append(
            {
                "end": [round(value, 3) for value in points[-1].tolist()],
                "before": [round(value, 3) for value in points[max(len(points) - 1 - LATE, 0)].tolist()],
                "steps": len(points) - 1,
                "arrived": arrived if arrived < len(points) else None,
                "at_rest": len(points) - 1 < setup.steps,
                "line": [[round(value, 2) for value in point] for point in thinned(points.numpy()).tolist()],
            }
        )
    return found


def load() -> dict[str, list[dict]]:
    """Return the records by balancer."""
    return json.loads(DATA.read_text())["walks"] if DATA.exists() else {}


def measure(keys: list[str]) -> None:
    """Walk the named balancers, or those without a record, and keep the records."""
    known = load()
    for key in keys or [key for key in BY_KEY if key not in known]:
        found = record(key)
        print(key, *((walked["end"], walked["arrived"]) for walked in found), flush=True)
        records = {**load(), key: found}  # read again: several may run at once
        lines = [f'  "{name}": {json.dumps(records[name])}' for name in sorted(records)]
        head = json.dumps({"setup": SETUP, "torch": torch.__version__})[:-1]
        DATA.write_text(head + ', "walks": {\n' + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("keys", nargs="*", metavar="KEY")
    parser.add_argument("--draw", action="store_true", help="walk nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.draw:
        measure(arguments.keys)
