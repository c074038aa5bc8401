"""Record the loss curves of every balancer anew; review the diff before committing."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from balancers.golden_run import loss_curves  # noqa: E402 - the tests are no package

path = ROOT / "tests" / "golden" / "balancers.json"
path.parent.mkdir(exist_ok=True)
curves = loss_curves()
lines = [f'  "{key}": {json.dumps(curves[key])}' for key in sorted(curves)]
path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
print(f"wrote {path} ({len(curves)} balancers)")
