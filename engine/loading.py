"""Files that mmengine loads by itself, for a model's own `init_cfg` say, are read as safely as all others.

Its own reader falls back to full unpickling, which runs what a file tells it to.
"""

from typing import Any

from mmengine.runner import CheckpointLoader

from ..backbones._checkpoint import read_checkpoint


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local file; its tensors lie on the CPU, from where mmengine copies them.

    Raises:
        UserError: the file is missing or corrupt, or holds more than plain weights.
    """
    return read_checkpoint(filename)
