"""Imported first by a tool that runs as a script: says how to install vertebra where it cannot be imported."""

import importlib.util
import sys

if importlib.util.find_spec("vertebra") is None:
    sys.exit("vertebra is not installed in this Python: run `pip install -e .` in the clone first.")
