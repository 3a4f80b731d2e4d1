"""The families. Importing this package registers every one of them with timm."""

from . import cswin, van

__all__ = ["cswin", "model_names", "van"]

_FAMILIES = (van, cswin)


def model_names() -> list[str]:
    """Every name that vertebra added to timm's registry: family by family, small variants first."""
    return [name for family in _FAMILIES for name in family.default_cfgs]
