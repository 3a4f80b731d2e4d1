"""Run a script of mmdet or mmseg with the engine in place: `python -m vertebra.engine.run PATH/test.py CONFIG ...`.

Their scripts import mmcv's operators before they read a config; without compiled ones `vertebra.engine` comes first.
What the engine refuses is said in one sentence, with exit code 2, as our own tools say it.
"""

import runpy
import sys
from pathlib import Path

from ..backbones._errors import Interrupted, UserError


def main() -> int:
    """Hand the command line over to the script that it names first."""
    words = sys.argv[1:]
    if not words or not Path(words[0]).is_file():
        given = words[0] if words else "nothing"
        return _refuse(f"{given} is no script: python -m vertebra.engine.run PATH/SCRIPT.py ...")
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    try:
        runpy.run_path(words[0], run_name="__main__")
    except UserError as error:
        return _refuse(str(error))
    except Interrupted as stopped:
        if str(stopped):  # of several processes, the first one speaks
            print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    return 0


def _refuse(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
