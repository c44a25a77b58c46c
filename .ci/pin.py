#!/usr/bin/env python3
"""Write .ci/requirements.txt: every package that the tests need, with the hash of the file that pip takes here.

`make pins` runs it after constraints.txt has changed. The hashes are those of one platform, which is CI's: Linux on
x86-64 with Python 3.11. torch has those of two files, PyPI's own and the smaller one for machines without a GPU, where
an index at hand serves it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Made by `make pins` from constraints.txt: do not edit. `pip install --require-hashes -r .ci/requirements.txt` refuses
# any file but these, which are for Linux on x86-64 with Python 3.11.
"""


def resolved(*arguments: str, env: dict[str, str] | None = None) -> dict[str, tuple[str, str]]:
    """Return by package the version and hash that pip would install; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    ran = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, env=env)
    found: dict[str, tuple[str, str]] = {}
    for one in json.loads(ran.stdout)["install"]:
        archive: dict[str, Any] = one["download_info"].get("archive_info", {})
        if "hashes" in archive:  # not so of metaopt itself, which is a folder
            name = re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower()
            found[name] = (one["metadata"]["version"], archive["hashes"]["sha256"])
    return found


def main() -> int:
    every = resolved("--constraint", str(ROOT / "constraints.txt"), f"{ROOT}[dev]")
    version = every["torch"][0].partition("+")[0]
    bare = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    pypi = resolved("--no-deps", f"torch=={version}", env=bare | {"PIP_CONFIG_FILE": os.devnull})
    lines = []
    for name, (version, digest) in sorted(every.items()):
        digests = sorted({digest, pypi[name][1]} if name in pypi else {digest})
        pinned = [f"{name}=={version.partition('+')[0]}", *(f"--hash=sha256:{one}" for one in digests)]
        lines.append(" \\\n    ".join(pinned))
    (ROOT / ".ci" / "requirements.txt").write_text(HEAD + "\n".join(lines) + "\n")
    print(f"{len(lines)} packages in .ci/requirements.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
