#!/usr/bin/env python3
"""Look the packages of .ci/requirements.txt up among known vulnerabilities (pip-audit): `make audit`.

Exit code 0: all were looked up, and none has one; 1: some have; 3: no list could be reached, which says nothing.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PINS = Path(__file__).resolve().parent / "requirements.txt"
UNKNOWN = 3


def pinned(text: str) -> list[str]:
    """Return the packages that are pinned. Raises ValueError where one has no version or no hash of its file."""
    entries = re.sub(r"\\\n", " ", re.sub(r"^#.*$", "", text, flags=re.M)).split("\n")
    found = [entry.split() for entry in entries if entry.strip()]
    for name, *hashes in found:
        if "==" not in name or not any(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes):
            raise ValueError(f"{PINS.name}: {name} lacks its version or the hash of its file; run `make pins`")
    return [name for name, *_ in found]


def verdict(found: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Return the exit code, and lines that say what came of each package, from what pip-audit found of all."""
    bad = [f"{one['name']} {one['version']}: {what['id']}, mended in {', '.join(what['fix_versions']) or 'none'}"
           for one in found for what in one.get("vulns", [])]  # fmt: skip
    left_out = [f"{one['name']}: not looked up ({one['skip_reason']})" for one in found if "skip_reason" in one]
    looked_up = len(found) - len(left_out)
    code = 1 if bad else UNKNOWN if left_out else 0
    return code, [*bad, *left_out, f"{looked_up} of {len(found)} looked up; known vulnerabilities: {len(bad)}"]


def main() -> int:
    names = pinned(PINS.read_text(encoding="utf-8"))
    print(f"{len(names)} packages, each pinned to a version and to the SHA-256 of its file")
    with tempfile.TemporaryDirectory() as folder:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "pip-audit"]
        had = subprocess.run(install, capture_output=True, text=True, check=False)
        if had.returncode:
            return unreached(had.stderr, "pip-audit cannot be installed")
        options = ["--require-hashes", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        command = [sys.executable, "-m", "pip_audit", *options, "--requirement", str(PINS)]
        environment = os.environ | {"PYTHONPATH": folder}
        asked = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    try:
        found = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError):
        return unreached(asked.stderr, "no list of vulnerabilities can be reached")
    code, lines = verdict(found)
    print("\n".join(lines))
    return code


def unreached(said: str, what: str) -> int:
    reason = ([line for line in said.splitlines() if line.strip()] or ["no word"])[-1].strip()
    print(f"{what} here ({reason}); nothing is known of these packages, either way: exit code {UNKNOWN}")
    return UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
