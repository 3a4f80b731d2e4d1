"""Every config that is shipped can be read, builds its model, and is found by its name."""

from pathlib import Path

import pytest
from vertebra.backbones._errors import UserError
from vertebra.engine.classifier import TimmClassifier
from vertebra.engine.config import change, check_model, config_names, find_config, read_config, use_data

CLASSIFIERS = [
    "imagenet/evaluation",
    *(name for name in config_names() if name.startswith(("demo/van", "demo/family"))),
]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_shipped_config_builds_its_model_with_every_option(name: str) -> None:
    config = read_config(name)
    options = {key: value for key, value in config.model.items() if key != "type"}
    assert TimmClassifier(**options, device="meta").backbone.num_classes == options["num_classes"]


def test_data_sets_learn_the_models_name() -> None:
    config = read_config("demo/van_b0_digits")
    check_model(config)
    assert config.train_dataloader.dataset.model_name == config.val_dataloader.dataset.model_name == "van_b0"


@pytest.mark.parametrize("base", ['"demo/van_b0_digits"', '["demo/van_b0_digits"]', '["mine.py"]'])
def test_a_config_of_ones_own_inherits_a_shipped_one_by_its_name(tmp_path: Path, base: str) -> None:
    (tmp_path / "mine.py").write_text('_base_ = "demo/van_b0_digits"\nmodel = dict(num_classes=5)\n')
    (tmp_path / "leaf.py").write_text(f"_base_ = {base}\nmodel = dict(num_classes=3)\n")
    if "mine" in base:
        (tmp_path / "mine.py").write_text(f'_base_ = "{find_config("demo/van_b0_digits")}"\nseed = 1\n')
    config = read_config(str(tmp_path / "leaf.py"))
    assert config.model.num_classes == 3
    assert config.train_cfg.max_epochs == 18
    assert config.filename == str(tmp_path / "leaf.py")


def test_a_config_of_ones_own_inherits_one_of_mmsegs_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("mmseg")
    (tmp_path / "own.py").write_text(
        '_base_ = "mmseg::sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py"\nlog_level = "ERROR"\n'
    )
    config = read_config(str(tmp_path / "own.py"))
    assert (config.model.decode_head.type, config.log_level) == ("FPNHead", "ERROR")


def test_names_of_mmcv_1_are_refused_unless_they_are_a_part_of_todays(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("model = dict()\noptimizer = dict(type='SGD')\noptim_wrapper = dict(optimizer=optimizer)\n")
    assert read_config(str(own)).optim_wrapper.optimizer.type == "SGD"
    (tmp_path / "leaf.py").write_text("_base_ = 'own.py'\n")
    assert read_config(str(tmp_path / "leaf.py")).optim_wrapper.optimizer.type == "SGD"
    own.write_text("model = dict()\noptimizer = dict(type='SGD')\n")
    with pytest.raises(UserError, match=r"'optimizer' is a name of mmcv 1; mmengine reads optim_wrapper\.optimizer"):
        read_config(str(own))


def test_a_base_that_does_not_exist_is_offered_near_names(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text('_base_ = "demo/van_b0_digit"\n')
    with pytest.raises(UserError, match="demo/van_b0_digits"):
        read_config(str(tmp_path / "own.py"))


def test_an_option_changes_the_config() -> None:
    config = read_config("demo/van_b0_digits")
    change(config, {"train_cfg.max_epochs": 3, "custom_hooks.0.momentum": 0.5})
    assert config.train_cfg.max_epochs == 3
    assert config.custom_hooks[0].momentum == 0.5


@pytest.mark.parametrize("kind", ["OptimWrapper", "AmpOptimWrapper"])
def test_an_option_may_make_what_nothing_was_said_of_before(kind: str) -> None:
    config = read_config("demo/van_b0_digits")
    config.optim_wrapper.pop("clip_grad")
    config.optim_wrapper.type = kind
    changes = {"paramwise_cfg.layer_decay": 0.8, "clip_grad.max_norm": 3, "accumulative_counts": 2}
    change(config, {f"optim_wrapper.{key}": value for key, value in changes.items()})
    assert config.optim_wrapper.paramwise_cfg == dict(layer_decay=0.8)
    assert config.optim_wrapper.clip_grad == dict(max_norm=3)
    with pytest.raises(UserError, match="there is no 'clip_grads' there"):
        change(config, {"optim_wrapper.clip_grads.max_norm": 3})


def test_an_option_under_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="there is no 'trian_cfg'"):
        change(read_config("demo/van_b0_digits"), {"trian_cfg.max_epochs": 3})


def test_the_folder_that_make_dataset_made_stands_for_its_imagenet_part(tmp_path: Path) -> None:
    (tmp_path / "imagenet/train").mkdir(parents=True)
    config = read_config("demo/van_b0_digits")
    use_data(config, str(tmp_path))
    assert config.val_dataloader.dataset.root == str(tmp_path / "imagenet")
