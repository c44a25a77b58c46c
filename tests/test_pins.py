"""What CI installs is what constraints.txt says, each file by its hash."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import audit

ROOT = Path(__file__).parents[1]
AUDIT = ROOT / ".ci" / "audit.py"


def test_every_pinned_package_has_a_hash_and_the_version_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    named = dict(line.split("==") for line in lines if "==" in line)
    constraints = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in named.items()}
    hashed = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", hashed, re.M))
    assert pinned == constraints, "run `make pins`"


def test_a_pin_without_a_hash_is_refused() -> None:
    text = audit.PINS.read_text(encoding="utf-8")
    assert len(audit.pinned(text)) > 50
    without, n = re.subn(r" \\\n    --hash=sha256:[0-9a-f]{64}$", "", text, count=1, flags=re.M)
    assert n == 1
    with pytest.raises(ValueError, match="lacks its version or the hash of its file; run `make pins`"):
        audit.pinned(without)


def test_an_audit_says_what_it_found_and_what_it_could_not_look_up() -> None:
    fine: dict[str, Any] = {"name": "a", "version": "1", "vulns": []}
    bad = fine | {"vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    left_out = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
    assert audit.verdict([fine]) == (0, ["1 of 1 looked up; known vulnerabilities: 0"])
    assert audit.verdict([fine, bad, left_out])[0] == 1
    assert audit.verdict([fine, left_out]) == (
        3, ["b: not looked up (Dependency not found on PyPI)", "1 of 2 looked up; known vulnerabilities: 0"]
    )  # fmt: skip


def test_where_nothing_can_be_reached_an_audit_says_that_it_knows_nothing() -> None:
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:1", "PIP_EXTRA_INDEX_URL": "", "PIP_RETRIES": "0",
               "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "", "PIP_FIND_LINKS": ""}  # fmt: skip
    done = subprocess.run(
        [sys.executable, AUDIT], env=os.environ | nowhere, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stdout + done.stderr
    pins, said = done.stdout.splitlines()
    assert pins.endswith(" packages, each pinned to a version and to the SHA-256 of its file")
    assert said.startswith("pip-audit cannot be installed here (")
    assert said.endswith("; nothing is known of these packages, either way: exit code 3")
