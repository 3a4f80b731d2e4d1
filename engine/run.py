"""Run a script of mmdet or mmseg with the engine in place: `python -m vertebra.engine.run PATH/test.py CONFIG ...`.

Their scripts import mmcv's operators before they read a config; without compiled ones `vertebra.engine` comes first.
"""

import runpy
import sys
from pathlib import Path


def main() -> int:
    """Hand the command line over to the script that it names first."""
    words = sys.argv[1:]
    if not words or not Path(words[0]).is_file():
        given = words[0] if words else "nothing"
        print(f"error: {given} is no script: python -m vertebra.engine.run PATH/SCRIPT.py ...", file=sys.stderr)
        return 2
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(words[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
