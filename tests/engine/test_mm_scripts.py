"""mmdet's and mmseg's own scripts run our leaves by path; configs of theirs run with our backbones and our tools."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tool_processes import Started
from vertebra.backbones._checkpoint import read_checkpoint
from vertebra.engine.config import read_config
from vertebra.tools import make_dataset

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

CONFIGS = Path(__file__).parents[2] / "configs"
DETECTOR = """
_base_ = "{configs}/coco/van/retinanet_van_b0_fpn_1x.py"
model = dict(backbone=dict(pretrained=False, depths=(1, 1, 1, 1)), bbox_head=dict(num_classes=10, stacked_convs=1))
whole = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
data = dict(data_root="{data}/coco", metainfo=dict(classes=tuple("0123456789")), pipeline=whole)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = train_dataloader
test_dataloader = train_dataloader
val_evaluator = dict(ann_file="{data}/coco/annotations/instances_val2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=2)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""
SEGMENTER = """
_base_ = "{configs}/ade20k/van/semantic-fpn_van_b0_40k.py"
model = dict(backbone=dict(pretrained=False, depths=(1, 1, 1, 1)), data_preprocessor=dict(size=(64, 64)))
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", reduce_zero_label=True)]
crops = [*load, dict(type="RandomCrop", crop_size=(64, 64)), dict(type="PackSegInputs")]
root = "{data}/ade20k"
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root=root, pipeline=crops)
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=root, pipeline=[*load, dict(type="PackSegInputs")])
)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""
OF_MMDET = """
_base_ = "{mmdet}/configs/retinanet/retinanet_r50_fpn_1x_coco.py"
model = dict(
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512]),
    bbox_head=dict(num_classes=10, stacked_convs=1),
)
whole = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(128, 128), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
data = dict(data_root="{data}/coco/", metainfo=dict(classes=tuple("0123456789")), pipeline=whole)
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = train_dataloader
test_dataloader = train_dataloader
val_evaluator = dict(ann_file="{data}/coco/annotations/instances_val2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1, val_interval=2)
"""
WITH_OUR_BACKBONE = """
_base_ = "of_mmdet.py"
custom_imports = dict(imports=["vertebra.engine"])
model = dict(
    backbone=dict(_delete_=True, type="TimmPyramid", model_name="van_b0", depths=(1, 1, 1, 1)),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
"""
PLAIN_RUNNER = """
_base_ = "boxes.py"
runner_type = "Runner"
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=1, val_interval=2)
"""
TEXTS = {
    "boxes": DETECTOR,
    "segments": SEGMENTER,
    "of_mmdet": OF_MMDET,
    "with_our_backbone": WITH_OUR_BACKBONE,
    "plain_runner": PLAIN_RUNNER,
}
CHECKPOINTS = {"segments": "iter_2.pth"}


def scripts(kind: str) -> Path:
    """The folder of mmdet's or mmseg's own files, as their packages bring it."""
    package = "mmseg" if kind == "segments" else "mmdet"
    folder = Path(importlib.util.find_spec(package).submodule_search_locations[0]) / ".mim"
    if not folder.is_dir():
        pytest.skip(f"this {package} was installed without its own scripts")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes of digits, and the configs."""
    path = tmp_path_factory.mktemp("mm")
    assert make_dataset.main(["digits", str(path / "digits"), "--scenes", "8"]) == 0
    for name, text in TEXTS.items():
        places = {"{configs}": CONFIGS, "{data}": path / "digits", "{mmdet}": scripts("boxes")}
        for place, value in places.items():
            text = text.replace(place, str(value))
        (path / f"{name}.py").write_text(text)
    return path


def run_script(folder: Path, kind: str, script: str, *words: str, through: bool = False, **variables: str) -> str:
    """`python PATH/train.py CONFIG ...`, or the same through `vertebra.engine.run`; what it says."""
    command = [sys.executable, *(["-m", "vertebra.engine.run"] if through else [])]
    command += [str(scripts(kind) / "tools" / script), f"{kind}.py", *words]
    environment = dict(os.environ, OMP_NUM_THREADS="1", **variables)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def assert_trained(file: Path) -> None:
    weights = read_checkpoint(file)["state_dict"]
    assert any(key.startswith("backbone.body.stages.3.") for key in weights)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("kind", [pytest.param("boxes", marks=pytest.mark.all), "segments"])
def test_their_train_script_runs_our_leaf_with_nothing_but_its_imports(folder: Path, kind: str) -> None:
    run_script(folder, kind, "train.py", "--work-dir", f"direct_{kind}")
    assert_trained(folder / f"direct_{kind}" / CHECKPOINTS.get(kind, "epoch_1.pth"))


@pytest.mark.all
@pytest.mark.parametrize("kind", ["boxes", "segments"])
def test_their_test_script_evaluates_what_their_train_script_left(folder: Path, kind: str) -> None:
    run_script(folder, kind, "train.py", "--work-dir", f"through_{kind}", through=True)
    file = f"through_{kind}/{CHECKPOINTS.get(kind, 'epoch_1.pth')}"
    words = (file, "--work-dir", f"tested_{kind}")
    run_script(folder, kind, "test.py", *words, through=True)
    if kind == "segments":  # mmdet's asks for mmcv's operators before it reads a config
        run_script(folder, kind, "test.py", *words)
    logs = [file.read_text() for file in folder.glob(f"tested_{kind}/*/*.log")]
    assert len(logs) == (2 if kind == "segments" else 1)
    assert all("(test)" in log for log in logs)


@pytest.mark.all
@pytest.mark.parametrize("kind", ["boxes", "segments"])
def test_their_test_script_takes_the_views_that_our_configs_ship(folder: Path, kind: str) -> None:
    file, work_dir = CHECKPOINTS.get(kind, "epoch_1.pth"), f"views_{kind}"
    run_script(folder, kind, "train.py", "--work-dir", work_dir)
    # a tenth of their size, which is about that of the scenes
    sizes = [step.scale for step in read_config(str(folder / f"{kind}.py")).tta_pipeline[1].transforms[0]]
    options = [
        f"tta_pipeline.1.transforms.0.{number}.scale=({width // 10},{height // 10})"
        for number, (width, height) in enumerate(sizes)
    ]
    words = (f"{work_dir}/{file}", "--tta", "--work-dir", f"{work_dir}_tested", "--cfg-options", *options)
    run_script(folder, kind, "test.py", *words, through=True)
    (log,) = (file.read_text() for file in folder.glob(f"{work_dir}_tested/*/*.log"))
    found = re.findall({"boxes": r"coco/bbox_mAP: ([\d.]+)", "segments": r"mIoU: ([\d.]+)"}[kind], log)
    assert found
    assert 0 <= float(found[-1]) <= 100
    tested = re.search(r"^model = dict\((.*?)^\w", log, re.MULTILINE | re.DOTALL)
    assert tested
    assert {"boxes": "DetectorTTA", "segments": "SegmenterTTA"}[kind] in tested[1]
    assert "do not match exactly" not in log


@pytest.mark.all
def test_their_train_script_leaves_mixed_precision_out_without_a_gpu(folder: Path) -> None:
    asked = [f"optim_wrapper.{option}" for option in ("type=AmpOptimWrapper", "dtype=float16", "loss_scale=512.0")]
    words = ("--work-dir", "mixed", "--cfg-options", *asked)
    said = run_script(folder, "boxes", "train.py", *words, CUDA_VISIBLE_DEVICES="-1")
    assert said.count("mixed precision of the config is left out: it needs a CUDA GPU, and this runs on cpu") == 1
    assert_trained(folder / "mixed/epoch_1.pth")


@pytest.mark.all
@pytest.mark.parametrize("kind", ["plain_runner", "with_our_backbone"])
def test_mmengines_own_runner_and_loop_do_as_well(folder: Path, kind: str) -> None:
    run_script(folder, kind, "train.py", "--work-dir", kind)
    assert_trained(folder / kind / "epoch_1.pth")
    run_script(folder, kind, "test.py", f"{kind}/epoch_1.pth", through=True)


@pytest.mark.all
def test_our_train_runs_a_config_of_mmdets_own(run: Callable[..., Started], folder: Path, tmp_path: Path) -> None:
    done = run("train", folder / "of_mmdet.py", "--work-dir", "own")
    assert done.code == 0, done.said
    weights = read_checkpoint(tmp_path / "own/epoch_1.pth")["state_dict"]
    assert any(key.startswith("backbone.layer4.") for key in weights)
