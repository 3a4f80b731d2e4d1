"""mmdet's and mmseg's own scripts, which import mmcv's operators first of all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
import beside
from mmcv.ops import nms
print(__name__, sys.argv, beside.NAME)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m vertebra.engine.run` in a folder."""
    command = [sys.executable, "-m", "vertebra.engine.run", *words]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS="1")
    )


def test_a_script_runs_as_by_itself_with_the_engine_in_place(tmp_path: Path) -> None:
    pytest.importorskip("mmcv")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/script.py").write_text(SCRIPT)
    (tmp_path / "tools/beside.py").write_text("NAME = 'found'")
    done = run(tmp_path, "tools/script.py", "config.py", "--work-dir", "wd")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "__main__ ['tools/script.py', 'config.py', '--work-dir', 'wd'] found"


@pytest.mark.parametrize(("words", "sentence"), [((), "nothing is no script"), (("no.py",), "no.py is no script")])
def test_what_is_no_script_is_refused(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {sentence}")


def test_what_the_engine_refuses_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    (tmp_path / "script.py").write_text("import vertebra.engine.pyramid as p\np.TimmPyramid('van_b9')")
    done = run(tmp_path, "script.py")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: there is no model 'van_b9'")
