"""Start-up and peak memory of a study on a folder of 100,000 pictures: first with no cache, then with it.

    make bench

Colour JPEG files of 128 x 128 pixels in 1,000 class folders, read as 84 x 84. Each start is a process of its own;
its peak is the largest resident set that the system saw until its pools stood. After 1,000 tasks more is resident: what
is mapped of the cache's file, which the system takes back where it needs memory, and what is the process's own.
"""

import os
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

N_CLASSES, N_EXAMPLES, SIZE = 1000, 100, 84


def main() -> None:
    if sys.argv[1:]:
        start(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "pictures"
        write(root)
        environment = {**os.environ, "METAOPT_CACHE": str(Path(scratch) / "cache"), "OMP_NUM_THREADS": "1"}
        print(f"{N_CLASSES * N_EXAMPLES:,} pictures, {N_CLASSES * N_EXAMPLES * 3 * SIZE**2 / 2**20:,.0f} MiB decoded")
        for name in ("first start", "second start"):
            print(f"{name:<13}", end=" ", flush=True)
            subprocess.run([sys.executable, __file__, str(root)], env=environment, check=True)


def start(root: Path) -> None:
    import torch

    from metaopt_tasks.images import Images

    before = resident("VmHWM")
    wall, cpu = time.monotonic(), time.process_time()
    sampler = Images(Images.Config(root=str(root), size=SIZE, duplicates="keep"))
    spec = sampler.spec(5, 1, 15)
    for pool in sampler.pools:
        sampler.check(pool, spec)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    standing = resident("VmHWM")
    generator = torch.Generator().manual_seed(0)
    for _ in range(63):
        sampler.draw("train", spec, 16, generator)
    print(
        f"{wall:6.1f} s ({cpu:.1f} s of CPU), peak {standing:,.0f} MiB, of which Python and torch {before:,.0f}; after "
        f"1,000 tasks {resident('RssAnon'):,.0f} MiB of its own and {resident('RssFile'):,.0f} mapped"
    )


def resident(what: str) -> float:
    """Return what Linux counts as resident of this process, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{what}:")[2].split()[0]) / 1024


def write(root: Path) -> None:
    """Write pictures that the codec finds as hard as photographs, smooth colours and a little noise: one for a class,
    in as many files, since what is decoded is not looked at.
    """
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(N_CLASSES):
        folder = root / f"class{number:04}"
        folder.mkdir(parents=True)
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((128, 128))
        noise = draw.integers(0, 32, (128, 128, 1), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray((np.asarray(coarse) // 2 + noise).astype(np.uint8)).save(file, "JPEG", quality=85)
        for example in range(N_EXAMPLES):
            (folder / f"{example:03}.jpg").write_bytes(file.getvalue())


if __name__ == "__main__":
    main()
