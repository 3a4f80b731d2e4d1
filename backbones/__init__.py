"""The families. Importing this package registers every one of them with timm."""

from . import biformer, cswin, l2vit, litv2, transnext, van

__all__ = ["biformer", "cswin", "l2vit", "litv2", "model_names", "transnext", "van"]

_FAMILIES = (van, biformer, transnext, litv2, cswin, l2vit)


def model_names() -> list[str]:
    """Every name that vertebra added to timm's registry: family by family, small variants first."""
    return [name for family in _FAMILIES for name in family.default_cfgs]
