"""The families. Importing this package registers every one of them with timm."""

from . import biformer, cswin, davit_fused, l2vit, litv2, maxvit_fused, shvit_fused, transnext, van
from ._fused import fuse_attention

__all__ = [
    "biformer",
    "cswin",
    "davit_fused",
    "fuse_attention",
    "l2vit",
    "litv2",
    "maxvit_fused",
    "model_names",
    "shvit_fused",
    "transnext",
    "van",
]

_FAMILIES = (van, biformer, transnext, litv2, cswin, l2vit, davit_fused, maxvit_fused, shvit_fused)


def model_names() -> list[str]:
    """Every name that vertebra added to timm's registry: family by family, small variants first."""
    return [name for family in _FAMILIES for name in family.default_cfgs]
