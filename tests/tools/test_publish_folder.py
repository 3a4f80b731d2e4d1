"""publish writes a whole folder or none: what is refused is one sentence, and what a killed run left is no obstacle."""

import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_networks import write_weights
from vertebra.backbones._errors import UserError
from vertebra.tools import publish
from vertebra.tools._classifier import Classifier, load_classifier
from vertebra.tools._common import run_tool

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors")


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> Classifier:
    return load_classifier("test_resnet", checkpoint)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_command_writes_three_files_and_says_the_same_again(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hub"
    for said in ("loaded back with the same weights and answers", "there already and the same"):
        assert run_tool(publish.main, ["test_resnet", str(checkpoint), str(out)]) == 0
        printed, warned = capfd.readouterr()
        assert warned == ""
        assert said in printed
        assert f"local-dir:{out}" in printed
        assert listing(out) == FILES
        assert listing(tmp_path) == ["hub"]


def test_folder_that_a_shell_is_in_stays_the_same_folder(
    network: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    publish.publish(network, ".")
    assert (tmp_path.stat().st_ino, listing(Path())) == (before, FILES)
    assert publish.publish(network, ".").was_there


def test_model_without_classes_is_no_classifier_to_publish(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    with pytest.raises(UserError, match=r"test_resnet has no classes \(num_classes is 0\)"):
        publish.publish(Classifier("test_resnet", model), tmp_path / "hub")
    assert listing(tmp_path) == []


def test_what_timm_cannot_write_is_one_sentence(
    network: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise ValueError("Model argument 'norm_layer' is not serializable")

    monkeypatch.setattr(publish, "save_for_hf", refuse)
    with pytest.raises(UserError, match="test_resnet cannot be written: Model argument 'norm_layer' is not"):
        publish.publish(network, tmp_path / "hub")
    assert listing(tmp_path) == []


def test_another_model_is_not_written_over(network: Classifier, tmp_path: Path) -> None:
    out = tmp_path / "hub"
    publish.publish(network, out)
    before = contents(out)
    with pytest.raises(UserError, match="holds another model or card"):
        publish.publish(network, out, licence="other")
    assert contents(out) == before
    assert listing(tmp_path) == ["hub"]


def test_model_that_would_come_back_different_is_not_published(
    network: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").mkdir()

    def forget_a_weight(model: torch.nn.Module, folder: str, *args: Any, **options: Any) -> None:
        timm.models.save_for_hf(model, folder, *args, **options)
        weights = model.state_dict() | {"fc.bias": torch.ones(4)}
        save_file(weights, f"{folder}/model.safetensors")

    monkeypatch.setattr(publish, "save_for_hf", forget_a_weight)
    with pytest.raises(UserError, match="is another model: nothing was written"):
        publish.publish(network, tmp_path / "hub")
    assert listing(tmp_path / "hub") == []
    assert listing(tmp_path) == ["hub"]


def test_full_disk_leaves_no_folder(network: Classifier, tmp_path: Path) -> None:
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises((OSError, UserError), match=r"(?i)file too large"):
            publish.publish(network, tmp_path / "hub")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["van_b00", "w", "new"], "no model 'van_b00' in timm or vertebra. Did you mean van_b0"),
        (["test_resnet", "gone.pth", "new"], "checkpoint gone.pth does not exist"),
        (["test_resnet", "w", "full"], "full holds precious.txt: a new or empty folder is accepted"),
        (["test_resnet", "w", "text.txt"], "text.txt is no folder"),
        (["test_resnet", "w", "text.txt/new"], "text.txt is no folder"),
        (["test_resnet", "w", "n" * 300], "cannot be written: File name too long"),
        (["test_resnet", "w", "new", "--metrics", "gone.json"], "--metrics gone.json cannot be read: No such file"),
        (["test_resnet", "w", "new", "--metrics", "text.txt"], "--metrics text.txt is no JSON"),
        (["test_resnet", "w", "new", "--metrics", "dense.json"], "--metrics dense.json holds no top1"),
        (
            ["test_resnet", "w", "new", "--metrics", "other.json"],
            "--metrics other.json is of van_b1, not of test_",
        ),
        (["test_resnet", "w", "new", "--metrics", "older.json"], "is of the checkpoint run/epoch_1.pth, not of "),
        (["test_resnet", "w", "new", "--licence", "my own"], "--licence is 'my own'; an identifier of the Hub"),
        (["test_resnet", "w", "new", "--device", "toaster"], "--device toaster cannot be used here"),
    ],
)
def test_bad_input_is_one_sentence_and_touches_nothing(
    argv: list[str],
    sentence: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("precious")
    (tmp_path / "text.txt").write_text("precious")
    (tmp_path / "dense.json").write_text('{"box_AP": 0.4}')
    (tmp_path / "other.json").write_text('{"top1": 0.4, "model": "van_b1"}')
    (tmp_path / "older.json").write_text('{"top1": 0.4, "model": "test_resnet", "checkpoint": "run/epoch_1.pth"}')
    before = listing(tmp_path)
    assert run_tool(publish.main, [str(checkpoint) if word == "w" else word for word in argv]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert sentence in message
    assert listing(tmp_path) == before
    assert listing(tmp_path / "full") == ["precious.txt"]


# ---- after a run that was killed


def write_unfinished(beside: Path, name: str) -> Path:
    """What a run leaves that is killed while it writes: a temporary folder with some of the files of `name`."""
    folder = beside / ".publish_a1b2c3d4" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half of")
    return folder.parent


@pytest.mark.parametrize("place", [".", "hub"])
def test_a_killed_run_does_not_block_its_folder(network: Classifier, tmp_path: Path, place: str) -> None:
    write_unfinished(tmp_path / place, "hub")
    publish.publish(network, tmp_path / "hub")
    assert (listing(tmp_path), listing(tmp_path / "hub")) == (["hub"], FILES)


def test_a_run_into_another_folder_is_left_alone(network: Classifier, tmp_path: Path) -> None:
    other = write_unfinished(tmp_path, "hub_2")
    publish.publish(network, tmp_path / "hub")
    assert listing(other / "hub_2") == ["model.safetensors"]
    assert listing(tmp_path) == [other.name, "hub"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_killed_between_two_files_is_finished_by_the_next(
    network: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    out, replace, moved = tmp_path / "hub", publish.os.replace, []
    out.mkdir()

    def killed(source: Path, target: Path) -> None:
        if len(moved) == count:
            raise KeyboardInterrupt
        moved.append(target.name)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(publish.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            publish.publish(network, out)
    assert listing(out) == sorted(moved)
    assert "config.json" not in moved
    assert not publish.publish(network, out).was_there
    assert listing(out) == FILES
    assert publish.publish(network, out).was_there


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_a_file_of_ones_own_is_not_taken_for_an_unfinished_run(network: Classifier, tmp_path: Path, name: str) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / name).write_text("precious")
    with pytest.raises(UserError, match=rf"hub holds {name} of an unfinished run or of one's own: choose another"):
        publish.publish(network, tmp_path / "hub")
    assert contents(tmp_path / "hub") == {name: b"precious"}
