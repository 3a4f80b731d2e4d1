"""A mistake is answered by one sentence that names it, an exit code that is not 0, no traceback, and nothing lost."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
import vertebra  # noqa: F401  registers the models
from PIL import Image
from small_images import write_images
from tool_processes import Started

SHORT = ["--cfg-options", "train_cfg.max_epochs=1"]


def assert_refused(tool: Started, *words: str) -> None:
    """One sentence with these words on stderr, exit code 2, no traceback."""
    assert tool.code == 2, f"exit code {tool.code}: {tool.said}"
    assert "Traceback" not in tool.said, tool.said
    sentences = [line for line in tool.said.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, tool.said
    for word in words:
        assert word in sentences[0], f"{word!r} is not in: {sentences[0]}"


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """A small data folder to spoil."""
    return write_images(tmp_path / "images")


def test_a_missing_data_folder_is_told_the_layout_and_how_to_make_data(run: Callable, tiny: Path) -> None:
    tool = run("train", tiny, "--data", "nowhere")
    assert_refused(tool, "nowhere does not exist", "train/ and val/", "make_dataset digits")


def test_a_misspelled_config_is_offered_its_neighbours(run: Callable) -> None:
    assert_refused(run("train", "demo/van_b0_digit"), "demo/van_b0_digit", "demo/van_b0_digits")


def test_a_misspelled_key_on_the_command_line_is_named(run: Callable, tiny: Path) -> None:
    tool = run("train", tiny, "--cfg-options", "train_cfg.max_epoch=1")
    assert_refused(tool, "max_epoch", "did you mean 'max_epochs'")


def test_a_misspelled_key_in_a_config_is_named(run: Callable, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"_base_ = ['{tiny}']\noptim_wraper = dict()\n")
    assert_refused(run("train", "own.py"), "optim_wraper", "optim_wrapper")


def test_a_misspelled_model_option_is_named(run: Callable, tiny: Path) -> None:
    assert_refused(run("train", tiny, "--cfg-options", "model.drop_pth_rate=0.1"), "drop_pth_rate", "VAN")


def test_a_config_that_is_no_python_is_said_to_be_unreadable(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("model = dict(\n")
    assert_refused(run("train", "broken.py"), "broken.py", "SyntaxError")


def test_an_unknown_model_is_offered_near_names(run: Callable, tiny: Path) -> None:
    assert_refused(run("train", tiny, "--backbone", "van_b9"), "van_b9", "Did you mean van_b")


def test_an_empty_class_folder_is_named(run: Callable, tiny: Path, own_images: Path) -> None:
    (own_images / "train/class9").mkdir()
    assert_refused(run("train", tiny, "--data", own_images), "class9", "holds no image")


def test_another_number_of_classes_is_refused(run: Callable, tiny: Path) -> None:
    tool = run("train", tiny, "--cfg-options", "model.num_classes=7")
    assert_refused(tool, "4 classes", "model 7", "model.num_classes=4")


def test_fewer_images_than_a_batch_are_refused(run: Callable, tiny: Path) -> None:
    tool = run("train", tiny, "--cfg-options", "train_dataloader.batch_size=64")
    assert_refused(tool, "48 training images", "batch_size")


def test_unreadable_images_are_skipped_and_counted(run: Callable, tiny: Path, own_images: Path) -> None:
    (own_images / "train/class0/0.png").write_text("no image")
    half = own_images / "train/class1/1.png"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    (own_images / "val/class2/0.png").write_bytes(b"")
    tool = run("train", tiny, "--data", own_images, "--work-dir", "wd", *SHORT)
    assert tool.code == 0, tool.said
    assert "class0/0.png cannot be read and is skipped" in tool.said
    assert "class1/1.png cannot be read and is skipped (2 so far)" in tool.said
    assert "class2/0.png" in tool.said


def test_too_many_unreadable_images_end_the_run(run: Callable, tiny: Path, own_images: Path) -> None:
    for number in range(6):
        (own_images / f"train/class0/{number}.png").write_text("no image")
    tool = run("train", tiny, "--data", own_images, "--work-dir", "wd", *SHORT)
    assert_refused(tool, "cannot be read", "2 are skipped at most")


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_its_checkpoints(
    run: Callable, tiny: Path, tmp_path: Path
) -> None:
    """The rate of the second epoch is beyond all bounds; the schedule is what a resumed run takes from its config."""
    wild = ["param_scheduler=None", "optim_wrapper.clip_grad=None", "optim_wrapper.optimizer.lr=1e30"]
    first = run("train", tiny, "--work-dir", "wd", "--cfg-options", "train_cfg.max_epochs=1")
    assert first.code == 0, first.said
    checkpoint = torch.load(tmp_path / "wd/epoch_1.pth", weights_only=False)
    for group in checkpoint["optimizer"]["param_groups"]:
        group["lr"] = group["initial_lr"] = 1e30
    torch.save(checkpoint, tmp_path / "wd/epoch_1.pth")
    kept = (tmp_path / "wd/epoch_1.pth").read_bytes()
    tool = run("train", tiny, "--work-dir", "wd", "--resume", "--cfg-options", *wild[:2])
    assert_refused(tool, "the loss is", "learning rate")
    assert (tmp_path / "wd/epoch_1.pth").read_bytes() == kept
    tool = run("train", tiny, "--work-dir", "wd", "--resume", "--nan-guard", "--cfg-options", *wild[:2])
    assert_refused(tool, "the output of backbone.", "the first of all modules")


def test_a_work_dir_with_checkpoints_is_not_trained_over(run: Callable, tiny: Path, tmp_path: Path) -> None:
    assert run("train", tiny, "--work-dir", "wd", *SHORT).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "wd").glob("*.pth")}
    assert_refused(run("train", tiny, "--work-dir", "wd", *SHORT), "wd", "--resume")
    assert {path.name: path.read_bytes() for path in (tmp_path / "wd").glob("*.pth")} == before


def test_a_work_dir_of_another_model_classes_or_data_is_refused(
    run: Callable, tiny: Path, tmp_path: Path, own_images: Path
) -> None:
    assert run("train", tiny, "--work-dir", "wd", *SHORT).code == 0
    again = ["train", tiny, "--work-dir", "wd", "--resume"]
    assert_refused(run(*again, "--backbone", "van_b1"), "its model is van_b0", "van_b1")
    (own_images / "train/class0").rename(own_images / "train/other0")
    (own_images / "val/class0").rename(own_images / "val/other0")
    assert_refused(run(*again, "--data", own_images), "classes of the data set", "another --work-dir")
    moved = tmp_path / "moved"
    shutil.copytree(own_images, moved)
    (moved / "train/other0").rename(moved / "train/class0")
    (moved / "val/other0").rename(moved / "val/class0")
    tool = run(*again, "--data", moved, *SHORT)
    assert tool.code == 0, f"the same data in another folder is the same data: {tool.said}"


@pytest.mark.parametrize("name", ["missing.pth", "cut.pth", "empty.pth", "text.pth", "hostile.pth", "foreign.pth"])
def test_a_bad_checkpoint_to_resume_from_is_refused(run: Callable, tiny: Path, tmp_path: Path, name: str) -> None:
    write_bad_checkpoint(tmp_path, name)
    tool = run("train", tiny, "--work-dir", "wd", "--resume", name)
    assert_refused(tool, name)
    assert not (tmp_path / "ran").exists(), "something in the file was run"


class _Hostile:
    def __reduce__(self) -> tuple:
        return (os.system, ("touch ran",))


def write_bad_checkpoint(folder: Path, name: str) -> None:
    """A file that is no checkpoint to go on from, in the way that its name says."""
    path = folder / name
    if name == "cut.pth":
        torch.save({"state_dict": {"weight": torch.zeros(1000)}}, path)
        path.write_bytes(path.read_bytes()[:2000])
    elif name == "empty.pth":
        path.touch()
    elif name == "text.pth":
        path.write_text("this is no checkpoint")
    elif name == "hostile.pth":
        torch.save({"state_dict": {"weight": torch.zeros(2)}, "extra": _Hostile()}, path)
    elif name == "foreign.pth":
        torch.save({"conv1.weight": torch.zeros(4, 3, 3, 3)}, path)


@pytest.mark.parametrize("key", ["load_from", "model.weights"])
def test_no_path_that_takes_weights_runs_what_a_file_holds(run: Callable, tiny: Path, tmp_path: Path, key: str) -> None:
    write_bad_checkpoint(tmp_path, "hostile.pth")
    tool = run("train", tiny, "--work-dir", "wd", "--cfg-options", f"{key}=hostile.pth")
    assert_refused(tool, "hostile.pth")
    assert not (tmp_path / "ran").exists()


def test_test_and_infer_run_nothing_of_a_hostile_file(run: Callable, tiny: Path, tmp_path: Path, images: Path) -> None:
    write_bad_checkpoint(tmp_path, "hostile.pth")
    assert_refused(run("test", tiny, "hostile.pth"), "hostile.pth is refused")
    assert_refused(run("test", "van_b0", "hostile.pth", "--data", images), "hostile.pth is refused")
    assert_refused(run("infer", "van_b0", "hostile.pth", images / "val", "--out", "out"), "hostile.pth is refused")
    assert not (tmp_path / "ran").exists()


def test_without_a_checkpoint_resume_starts_from_the_beginning(run: Callable, tiny: Path) -> None:
    tool = run("train", tiny, "--work-dir", "wd", "--resume", *SHORT)
    assert tool.code == 0, tool.said
    assert "starting from the beginning" in tool.said


def test_a_work_dir_that_cannot_be_written_is_named(run: Callable, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert_refused(run("train", tiny, "--work-dir", "file/wd"), "file/wd", "cannot be written")


def test_a_full_disk_ends_the_run_and_leaves_older_checkpoints_whole(
    start: Callable, run: Callable, tiny: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for the full disk; the checkpoint is larger than it."""
    assert run("train", tiny, "--work-dir", "wd", *SHORT).code == 0
    kept = (tmp_path / "wd/epoch_1.pth").read_bytes()
    assert len(kept) > 3_000_000
    tool = start("train", tiny, "--work-dir", "wd", "--resume", largest_file=3_000_000).wait()
    assert_refused(tool, "may write")
    assert (tmp_path / "wd/epoch_1.pth").read_bytes() == kept
    assert not list((tmp_path / "wd").glob(".*.tmp"))
    assert run("train", tiny, "--work-dir", "wd", "--resume").code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.all
def test_a_disk_without_room_even_for_the_logs_ends_the_run_in_one_sentence(
    start: Callable, run: Callable, tiny: Path, small_disk: Path
) -> None:
    work_dir, loud = small_disk / "wd", ["--loggers", "tensorboard"]
    assert run("train", tiny, "--work-dir", work_dir, *loud, *SHORT).code == 0
    kept = (work_dir / "epoch_1.pth").read_bytes()
    tool = start("train", tiny, "--work-dir", work_dir, "--resume", *loud)
    tool.wait_until(lambda: "epoch 2/4" in tool.said)
    with suppress(OSError):
        (small_disk / "filler").write_bytes(bytes(128_000_000))
    assert_refused(tool.wait(), "the disk is full")
    assert (work_dir / "epoch_1.pth").read_bytes() == kept
    (small_disk / "filler").unlink()
    assert run("train", tiny, "--work-dir", work_dir, "--resume", *loud).code == 0


def test_words_that_are_no_option_are_refused(run: Callable, tiny: Path) -> None:
    assert_refused(run("train", tiny, "--cfg-options", "max_epochs"), "key=value", "max_epochs")


def test_an_unknown_logger_is_refused(run: Callable, tiny: Path) -> None:
    assert_refused(run("train", tiny, "--loggers", "paper"), "paper", "tensorboard")


def test_an_image_that_does_not_exist_is_named(run: Callable) -> None:
    assert_refused(run("infer", "van_b0", "nowhere.png", "--out", "out"), "nowhere.png does not exist")


def test_a_file_that_is_neither_config_nor_onnx_is_named(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "program.ts").write_bytes(b"\x96")
    Image.new("RGB", (40, 40)).save(tmp_path / "yes.png")
    assert_refused(run("infer", "program.ts", "yes.png", "--out", "out"), "program.ts", "infer does not run")
    assert_refused(run("train", "program.ts"), "program.ts is no config", ".py")


def test_a_config_that_does_not_exist_is_answered_with_those_beside_it(run: Callable) -> None:
    assert_refused(run("train", "demo/nothing_like_it"), "demo/nothing_like_it", "demo/retinanet_digits")


def test_files_that_are_no_images_are_said_to_be_none(run: Callable, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("van_b0", num_classes=4).state_dict(), weights)
    (tmp_path / "no.png").write_text("no image")
    Image.new("RGB", (40, 40)).save(tmp_path / "yes.png")
    assert_refused(run("infer", "van_b0", "weights.pth", "no.png", "--out", "out"), "no file of the 1 given")
    tool = run("infer", "van_b0", "weights.pth", "no.png", "yes.png", "--out", "out")
    assert tool.code == 0, tool.said
    assert "1 image predicted, 1 skipped" in tool.said


def test_a_checkpoint_without_a_classifier_is_not_evaluated(run: Callable, tiny: Path, tmp_path: Path) -> None:
    model = timm.create_model("van_b0", num_classes=0, depths=(1, 1, 1, 1))
    torch.save(model.state_dict(), tmp_path / "trunk.pth")
    assert_refused(run("test", tiny, "trunk.pth"), "trunk.pth", "classifier")


@pytest.mark.parametrize(
    "option",
    [
        "train_dataloader.batchsize=4",
        "optim_wrapper.acumulative_counts=2",
        "optim_wrapper.optimizer.lrr=3",
        "train_dataloader.dataset.transform.hfip=0.5",
        "default_hooks.checkpoint.intervall=2",
    ],
)
def test_a_misspelled_option_is_named_wherever_it_stands(run: Callable, tiny: Path, option: str) -> None:
    tool = run("train", tiny, "--work-dir", "wd", "--cfg-options", option)
    assert_refused(tool, option.partition("=")[0].rpartition(".")[2])


def test_names_of_mmcv_1_are_told_their_successors(run: Callable, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(f"_base_ = ['{tiny}']\nlr_config = dict(policy='step')\n")
    assert_refused(run("train", "old.py"), "lr_config", "param_scheduler")


def test_a_config_that_only_evaluates_is_not_trained(run: Callable) -> None:
    assert_refused(run("train", "imagenet/evaluation"), "imagenet/evaluation", "train_cfg")


def test_another_optimizer_does_not_go_on_from_a_checkpoint(run: Callable, tiny: Path) -> None:
    assert run("train", tiny, "--work-dir", "wd", *SHORT).code == 0
    again = ["train", tiny, "--work-dir", "wd", "--resume", "--cfg-options"]
    assert_refused(run(*again, "optim_wrapper.paramwise_cfg.layer_decay=None"), "another optimizer")


def test_a_checkpoint_of_another_folder_is_not_gone_on_from_in_a_full_one(
    run: Callable, tiny: Path, tmp_path: Path
) -> None:
    assert run("train", tiny, "--work-dir", "one", *SHORT).code == 0
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    tool = run("train", tiny, "--work-dir", "one", "--resume", "two/epoch_1.pth")
    assert_refused(tool, "one holds checkpoints of its own")


def test_checkpoints_inside_an_optimizer_step_are_refused(run: Callable, tiny: Path) -> None:
    changes = ["default_hooks.checkpoint.by_epoch=False", "default_hooks.checkpoint.interval=5"]
    assert_refused(run("train", tiny, "--cfg-options", *changes), "every 5 batches", "steps of 2 batches")


def test_nothing_but_unreadable_images_is_a_sentence_from_a_worker_too(
    run: Callable, tiny: Path, own_images: Path
) -> None:
    for path in own_images.glob("train/*/*.png"):
        path.write_text("no image")
    tool = run("train", tiny, "--data", own_images, "--work-dir", "wd", *SHORT)
    assert_refused(tool, "none of 48 images in a row can be read")


def test_predictions_do_not_overwrite_the_images(run: Callable, tmp_path: Path) -> None:
    model = timm.create_model("van_b0", num_classes=4)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "pictures/a.png")
    before = (tmp_path / "pictures/a.png").read_bytes()
    assert_refused(run("infer", "van_b0", "weights.pth", "pictures", "--out", "pictures"), "would overwrite")
    assert (tmp_path / "pictures/a.png").read_bytes() == before


def test_published_weights_without_a_network_are_a_sentence(run: Callable, tiny: Path, images: Path) -> None:
    """timm takes the address from the cfg; this one leads nowhere."""
    overlay = "model.pretrained_cfg_overlay={'url':'http://127.0.0.1:9/weights.pth'}"
    tool = run("train", tiny, "--work-dir", "wd", "--cfg-options", "model.pretrained=True", overlay)
    assert_refused(tool, "published weights of van_b0 cannot be had")


def test_options_of_any_depth_can_be_read_back_from_a_checkpoint(run: Callable, tiny: Path) -> None:
    overlay = "model.pretrained_cfg_overlay={'mean':(0.5,0.5,0.5),'crop_pct':0.8}"
    assert run("train", tiny, "--work-dir", "wd", "--cfg-options", overlay, "train_cfg.max_epochs=1").code == 0
    tool = run("test", tiny, "wd/epoch_1.pth")
    assert tool.code == 0, tool.said


def test_the_config_inside_a_checkpoint_is_never_run(run: Callable, tiny: Path, tmp_path: Path) -> None:
    done = run("train", tiny, "--work-dir", "wd", "--cfg-options", "train_cfg.max_epochs=1")
    assert done.code == 0, done.said
    file = tmp_path / "wd/epoch_1.pth"
    checkpoint = torch.load(file, weights_only=False)
    checkpoint["meta"]["config"] = "import pathlib\npathlib.Path('ran').touch()\n"
    torch.save(checkpoint, file)
    done = run("train", tiny, "--work-dir", "wd", "--resume", "--cfg-options", "train_cfg.max_epochs=2")
    assert done.code == 0, done.said
    assert not (tmp_path / "ran").exists()
