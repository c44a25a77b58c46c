#!/usr/bin/env python3
"""Write .ci/requirements.txt: every package that the tests need, with the hash of the file that pip takes here.

`make pins` runs it after constraints.txt has changed. The hashes are those of one platform, which is CI's: Linux on
x86-64 with Python 3.11. torch's is of the build for machines without a GPU, as PyTorch's own index has it: PyPI's build
is another file, asks for gigabytes of CUDA beside it, and pip, given the hashes of both, takes that one.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Made by `make pins` from constraints.txt: do not edit. `pip install --require-hashes -r .ci/requirements.txt` refuses
# any file but these, which are for Linux on x86-64 with Python 3.11. torch is the build without CUDA: where no index at
# hand serves that, give pip another that does.
"""


def resolved() -> dict[str, tuple[str, str]]:
    """Return by package the version and hash that pip would install; nothing is installed."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    command += ["--constraint", str(ROOT / "constraints.txt"), f"{ROOT}[dev]"]
    found: dict[str, tuple[str, str]] = {}
    for one in json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["install"]:
        archive: dict[str, Any] = one["download_info"].get("archive_info", {})
        if "hashes" in archive:  # not so of metaopt itself, which is a folder
            name = re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower()
            found[name] = (one["metadata"]["version"], archive["hashes"]["sha256"])
    return found


def main() -> int:
    every = resolved()
    if not every["torch"][0].endswith("+cpu"):
        print(f"pip takes torch {every['torch'][0]} here; give it an index with the build for machines without a GPU")
        return 1
    lines = [
        f"{name}=={version.partition('+')[0]} \\\n    --hash=sha256:{digest}"
        for name, (version, digest) in sorted(every.items())
    ]
    (ROOT / ".ci" / "requirements.txt").write_text(HEAD + "\n".join(lines) + "\n")
    print(f"{len(lines)} packages in .ci/requirements.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
