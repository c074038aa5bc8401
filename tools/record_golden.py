"""Record the loss curves of balancers that have none yet; with --all of every one: review the diff before committing.

Other machines differ in the last digits, so recording all of them anew changes lines that say nothing.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from balancers.cases import CASES  # noqa: E402 - the tests are no package
from balancers.golden_run import curve  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--all", action="store_true", help="forget the recorded curves")
options = parser.parse_args()
path = ROOT / "tests" / "golden" / "balancers.json"
path.parent.mkdir(exist_ok=True)
old = json.loads(path.read_text()) if path.exists() and not options.all else {}
curves = {case.key: old.get(case.key) or curve(case) for case in CASES}
lines = [f'  "{key}": {json.dumps(curves[key])}' for key in sorted(curves)]
path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
print(f"wrote {path} ({len(curves)} balancers, new: {', '.join(sorted(set(curves) - set(old))) or 'none'})")
