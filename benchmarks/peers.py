"""What peers need in order to run beside torch 2.13; `benchmarks/peers.sh` installs them."""

import re
import sys
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch


def import_torchvision() -> None:
    """Import torchvision, which two peers need, where its compiled operators do not load: those of a CUDA wheel beside
    a CPU torch. No benchmark uses one, so they are declared and never defined.
    """
    while "torchvision" not in sys.modules:
        try:
            import torchvision  # noqa: F401 - what counts is that it loads
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if not missing:
                raise ImportError(str(error)) from error
            torch.library.define(missing[1], "(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]


def learn2learn() -> Any:
    """Import learn2learn, which says much on the way."""
    import_torchvision()
    with redirect_stderr(StringIO()):
        import learn2learn as module

    return module
