"""Encoders: what turns an example into features."""

from metaopt.hookspecs import hookimpl
from metaopt.nn import Encoder
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.identity import Identity
from metaopt_encoders.mlp import MLP
from metaopt_encoders.pyramid import Pyramid
from metaopt_encoders.resnet12 import ResNet12
from metaopt_encoders.wide import Wide


@hookimpl
def register_encoders() -> list[type[Encoder]]:
    """Return the built-in encoders."""
    return [MLP, Conv4, Identity, Pyramid, ResNet12, Wide]
