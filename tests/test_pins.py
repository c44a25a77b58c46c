"""What CI installs is what constraints.txt says, each file by its hash."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_pinned_package_has_a_hash_and_the_version_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = dict(line.split("==") for line in lines if "==" in line)
    constraints = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in named.items()}
    hashed = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", hashed, re.M))
    assert pinned == constraints, "run `make pins`"
