"""Encoders: what turns an example into features."""

from metaopt.hookspecs import hookimpl
from metaopt.nn import Encoder
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP


@hookimpl
def register_encoders() -> list[type[Encoder]]:
    """Return the built-in encoders."""
    return [Conv4, MLP]
