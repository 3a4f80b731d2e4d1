"""Where a run's numbers go: JSON lines always, and whatever `train --loggers` names, through mmengine's backends."""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

pytest.importorskip("mmengine", reason="the extra `train` is not installed")

from line_runs import line_runner
from mmengine.config import Config
from mmengine.visualization import TensorboardVisBackend
from vertebra.backbones._errors import UserError
from vertebra.engine.config import build_runner, read_config
from vertebra.tools.train import log_backends


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, MagicMock]:
    """wandb and mlflow, which write down what they are given and send nothing."""
    fakes = {name: MagicMock(name=name) for name in ("wandb", "mlflow")}
    fakes["mlflow"].MlflowException = RuntimeError
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return fakes


def run(folder: Path, loggers: str) -> None:
    """Twelve steps, each of which is logged."""
    config = folder / "line.py"
    config.write_text(f"work_dir = {str(folder)!r}")
    visualizer = dict(type="Visualizer", name=folder.name, vis_backends=log_backends(loggers))
    runner = line_runner(
        folder,
        dict(clip_grad=dict(max_norm=1.0)),
        default_hooks=dict(checkpoint=None, logger=dict(type="LoggerHook", interval=1)),
        visualizer=visualizer,
        cfg=Config.fromfile(config),
    )
    runner.train()
    runner.visualizer.close()


def test_flags_select_mmengines_backends_behind_json_lines(services: dict[str, MagicMock]) -> None:
    kinds = [backend["type"] for backend in log_backends("tensorboard,wandb,mlflow")]
    assert kinds == ["LocalVisBackend", "TensorboardVisBackend", "WandbVisBackend", "MLflowVisBackend"]
    assert log_backends("") == [dict(type="LocalVisBackend")]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{name}.*not installed.*vertebra\[loggers\]"):
        log_backends(name)


def test_logs_of_a_run_that_cannot_be_built_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise TensorBoard's thread writes on into a folder that is removed, and complains."""
    closed: list[TensorboardVisBackend] = []
    monkeypatch.setattr(TensorboardVisBackend, "close", lambda backend: closed.append(backend))
    config = read_config("demo/van_b0_digits")
    config.model.foo = 1
    config.work_dir = str(tmp_path)
    config.visualizer.vis_backends = log_backends("tensorboard")
    with pytest.raises(UserError, match="'foo' to VAN"):
        build_runner(config)
    assert len(closed) == 1


def test_a_line_of_json_has_what_a_run_is_watched_by(tmp_path: Path) -> None:
    run(tmp_path, "")
    (log,) = tmp_path.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 12
    assert all({"step", "epoch", "loss", "lr", "time", "memory", "grad_norm"} <= row.keys() for row in rows)


def test_numbers_arrive_at_the_services(services: dict[str, MagicMock], tmp_path: Path) -> None:
    run(tmp_path, "wandb,mlflow")
    wandb = [call.args[0] for call in services["wandb"].init.return_value.log.call_args_list]
    wandb += [call.args[0] for call in services["wandb"].log.call_args_list]
    mlflow = services["mlflow"].log_metrics.call_args_list
    assert [call.args[1] for call in mlflow] == list(range(1, 13))
    for rows in (wandb, [call.args[0] for call in mlflow]):
        assert len(rows) == 12
        assert all({"loss", "lr", "grad_norm", "memory"} <= row.keys() for row in rows)
