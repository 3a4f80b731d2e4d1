"""Where in a folder the images with classes are. Here, as exports look for them too, and those need no mmengine."""

from pathlib import Path


def with_classes(folder: str | Path) -> Path:
    """The part with classes of a folder that `make_dataset` wrote; any other folder as it is."""
    root = Path(folder)
    return root / "imagenet" if (root / "imagenet").is_dir() and not (root / "train").exists() else root
