"""export_onnx --fp16 and --int8: smaller files that say what they cost."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from small_images import write_images
from small_networks import Scale, one_per_family
from torch import Tensor, nn
from torch.nn import functional
from vertebra.backbones._errors import UserError
from vertebra.tools import export_onnx
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import run_tool
from vertebra.tools._export import onnx_graph, onnx_reduce
from vertebra.tools._export.accuracy import (
    Accuracy,
    Sample,
    batches,
    class_indices,
    find_samples,
    measure,
    share_out,
    spread,
)
from vertebra.tools._export.classifier import OnnxReport, export
from vertebra.tools._export.model import read_metadata
from vertebra.tools._export.onnx_reduce import largest_value
from vertebra.tools._export.reduced import export_reduced

FOLDERS = [f"class{index}" for index in range(4)]


class Tiny(nn.Module):
    """A convolution and a linear layer: (B, 3, H, W) -> (B, 4)."""

    num_classes, pretrained_cfg = 4, {"input_size": (3, 32, 32), "crop_pct": 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 32, 3, 2, 1), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Attending(nn.Module):
    """Masked attention among tokens, and a product with a weight of three dimensions: (B, 3, H, W) -> (B, 4)."""

    num_classes, pretrained_cfg = 4, {"input_size": (3, 32, 32), "crop_pct": 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.fc = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 4)
        self.keys = nn.Parameter(torch.randn(2, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT.unflatten(2, (2, 8)).transpose(1, 2)  # (B, 2, N, 8)
        scores = tokens @ self.keys
        mask = torch.arange(tokens.shape[2], device=x.device) > 0
        out = functional.scaled_dot_product_attention(tokens, tokens, tokens, mask[None]) + scores.mean(3, True)
        return self.fc(out.transpose(1, 2).flatten(2).mean(1))


def tiny() -> Classifier:
    torch.manual_seed(0)
    return Classifier("test_resnet", Tiny(), ["a", "b", "c", "d"], FOLDERS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes with 12 images each in train/ and 3 in val/."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float32 file of the same model."""
    out = tmp_path_factory.mktemp("full") / "m.onnx"
    export(tiny(), out)
    return out


Reduced = tuple[Path, OnnxReport, Accuracy | None]


@pytest.fixture(scope="module")
def half(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    out = tmp_path_factory.mktemp("half") / "m.onnx"
    return out, *export_reduced(tiny(), out, data=images)


@pytest.fixture(scope="module")
def eighth(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Reduced:
    out = tmp_path_factory.mktemp("eighth") / "m.onnx"
    return out, *export_reduced(tiny(), out, calibrate=images)


@pytest.fixture(params=["half", "eighth"])
def reduced(request: pytest.FixtureRequest) -> Reduced:
    """Each of the two."""
    return request.getfixturevalue(request.param)


def properties(path: Path) -> dict[str, object]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return read_metadata(session.get_modelmeta().custom_metadata_map)


def test_weights_of_a_half_file_are_half_and_its_ends_are_not(half: Reduced) -> None:
    graph = onnx.load(half[0]).graph
    assert {tensor.data_type for tensor in graph.initializer if tensor.dims} & {1, 10} == {10}
    assert [end.type.tensor_type.elem_type for end in (*graph.input, *graph.output)] == [1, 1]


def test_weights_of_an_int8_file_have_a_scale_per_channel(eighth: Reduced) -> None:
    graph = onnx.load(eighth[0]).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    assert sorted(
        tuple(constants[node.input[1]].dims) for node in weights if constants[node.input[0]].data_type == 3
    ) == [(4,), (32,)]


def test_reduced_files_hold_standard_operators_and_keep_metadata_and_free_sizes(reduced: Reduced, full: Path) -> None:
    known = properties(reduced[0])
    assert known.pop("precision") in ("float16", "int8")
    assert known == properties(full)
    assert {node.domain for node in onnx.load(reduced[0]).graph.node} <= {"", "ai.onnx"}
    (found,) = onnxruntime.InferenceSession(reduced[0]).run(None, {"image": torch.randn(3, 3, 45, 70).numpy()})
    assert found.shape == (3, 4)


@pytest.fixture(scope="module")
def attending(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Accuracy | None]]:
    """The float16 and the int8 file of a network that attends."""
    torch.manual_seed(0)
    folder, classifier = (
        tmp_path_factory.mktemp("attending"),
        Classifier("x", Attending(), ["a", "b", "c", "d"], FOLDERS),
    )
    half, eighth = folder / "half.onnx", folder / "eighth.onnx"
    return {
        "half": (half, export_reduced(classifier, half, data=images)[1]),
        "eighth": (eighth, export_reduced(classifier, eighth, calibrate=images)[1]),
    }


def test_of_int8_products_one_side_is_a_weight_and_a_matrix(attending: dict[str, tuple[Path, Accuracy | None]]) -> None:
    """Attention's own lose most, and ONNX Runtime runs no product with scales per channel of a larger constant."""
    file, accuracy = attending["eighth"]
    graph = onnx.load(file).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    sides = [[made_by.get(name) for name in node.input] for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert sum("DequantizeLinear" in side for side in sides) == 1
    assert len(sides) == 4
    assert accuracy is not None
    assert accuracy.difference < 0.2


def test_masks_do_not_count_as_overflow(attending: dict[str, tuple[Path, Accuracy | None]]) -> None:
    """The exporter writes the lowest number of float32 in the place of minus infinity."""
    accuracy = attending["half"][1]
    assert accuracy is not None
    assert accuracy.difference < 0.01


def test_reduced_files_stand_alone_in_their_folder(reduced: Reduced) -> None:
    assert list(reduced[0].parent.iterdir()) == [reduced[0]]


def test_half_costs_next_to_nothing_and_int8_little(half: Reduced, eighth: Reduced) -> None:
    assert half[2] is not None
    assert eighth[2] is not None
    assert 0 < half[2].difference < 2e-3 < eighth[2].difference < 0.2


def test_top1_is_what_pytorch_reaches_on_the_folder(half: Reduced, images: Path) -> None:
    classifier = tiny()
    transform, right = classifier.transform(), 0
    files = sorted((images / "val").rglob("*.png"))
    with torch.inference_mode():
        for file in files:
            answer = classifier.model.eval()(transform(Image.open(file))[None]).argmax()
            right += FOLDERS[int(answer)] == file.parent.name
    assert half[2] is not None
    assert (half[2].images, half[2].top1_float32) == (len(files), right / len(files))


def test_without_data_int8_is_measured_on_images_it_was_not_calibrated_on(eighth: Reduced, images: Path) -> None:
    """12 of 48: val/ is there, but what was asked for is a folder to calibrate on."""
    assert eighth[2] is not None
    assert eighth[2].images == 12
    assert f"int8, scales from 36 images of {images}" in str(eighth[1])
    everything = find_samples(images, "train", tiny(), "--calibrate")
    calibration, held_out = share_out(everything)
    assert not {sample.path for sample in calibration} & {sample.path for sample in held_out}
    assert len(calibration) + len(held_out) == len(everything)


@pytest.mark.all
def test_int8_file_that_agrees_badly_is_written_and_says_so(images: Path, tmp_path: Path) -> None:
    grey = tmp_path / "grey"  # zero for the network, and the images are not
    grey.mkdir()
    for number in range(2):
        Image.new("RGB", (40, 40), (124, 116, 104)).save(grey / f"{number}.png")
    report, accuracy = export_reduced(tiny(), tmp_path / "m.onnx", calibrate=grey, data=images)
    assert accuracy is not None
    assert accuracy.difference > 0.2
    assert (tmp_path / "m.onnx").is_file()
    assert f"int8 against float32 on {images}: the same class for" in str(report)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as too large for one."""
    for module in (onnx_graph, onnx_reduce):
        monkeypatch.setattr(module, "ONE_FILE_LIMIT", 0)


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("calibrated", [False, True])
def test_weights_too_large_for_one_file_lie_beside_it(calibrated: bool, images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = Tiny()
    wide.conv, wide.fc = nn.Conv2d(3, 2048, 3, 2, 1), nn.Linear(2048, 4)  # small tensors stay in the file
    classifier = Classifier("test_resnet", wide, ["a", "b", "c", "d"], FOLDERS)
    out = tmp_path / "m.onnx"
    report, accuracy = export_reduced(classifier, out, images if calibrated else None, images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").stat().st_size > 2048 * 27
    assert str(report).startswith(f"{out} and, as it is too large for one file, {out}.data")
    assert report.megabytes * 1e6 == pytest.approx(sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert accuracy is not None
    assert accuracy.difference < 0.2
    (found,) = onnxruntime.InferenceSession(out).run(None, {"image": torch.randn(3, 3, 45, 70).numpy()})
    assert found.shape == (3, 4)


def test_network_without_weights_in_its_products_has_nothing_for_8_bits(images: Path, tmp_path: Path) -> None:
    """ONNX Runtime would take every product there is instead."""
    classifier = Classifier("test_resnet", Scale(2.0), ["a", "b", "c"], FOLDERS)
    with pytest.raises(UserError, match="--int8: none of the network's Conv, MatMul, Gemm has a weight"):
        export_reduced(classifier, tmp_path / "m.onnx", images, images)
    assert not list(tmp_path.iterdir())


def test_numbers_that_overflow_in_half_are_found_on_a_cpu_too(full: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    assert 0.1 < largest_value(full, [images]) < 10
    with pytest.raises(UserError, match="float16 overflows above 65504"):
        largest_value(full, [images, 1e6 * images])


def test_weights_that_overflow_in_half_are_found_where_no_answer_shows_them(full: Path, tmp_path: Path) -> None:
    graph = onnx.load(full)
    weight = next(x for x in graph.graph.initializer if x.name.endswith("fc.weight"))
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[0, 0] = -1e5  # of a channel that is zero
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(graph, tmp_path / "large.onnx")
    with pytest.raises(UserError, match=r"reach 1e\+05, and float16 overflows above 65504"):
        largest_value(tmp_path / "large.onnx", [torch.zeros(1, 3, 32, 32)])


def test_half_precision_without_images_says_that_nothing_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_onnx, "_load", lambda *_: tiny())
    assert run_tool(export_onnx.main, ["test_resnet", "--out", str(tmp_path / "m.onnx"), "--fp16"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "accuracy not compared: --data DIR names a folder of images for that"


def test_command_says_what_was_saved_and_lost(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export_onnx, "_load", lambda *_: tiny())
    out = tmp_path / "m.onnx"
    assert run_tool(export_onnx.main, ["test_resnet", "--out", str(out), "--fp16", "--data", str(images)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}: ")
    assert "float16, opset" in lines[0]
    assert lines[-2].startswith("float16, numbers up to ")
    assert " MB instead of " in lines[-2]
    assert lines[-1].startswith(f"float16 against float32 on {images}: the same class for ")
    assert "of 12 images, top-1 " in lines[-1]
    assert "The float32 file that it was made from, in ONNX Runtime, against PyTorch, float32" in "\n".join(lines)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--int8"], "--int8 needs --calibrate DIR"),
        (["--calibrate", "images"], "--calibrate images is for --int8"),
        (["--data", "images"], "--data images is for --fp16 and --int8"),
        (["--fp16", "--csv", "t.csv"], "--csv t.csv has rows of float32 files"),
        (["--int8", "--calibrate", "gone"], "--calibrate gone is no folder"),
        (["--fp16", "--data", "gone"], "--data gone is no folder"),
        (["--int8", "--calibrate", "empty"], "folder empty holds no image"),
        (["--int8", "--calibrate", "one"], "--calibrate has 1 image; 2 or more are accepted"),
        (["--int8", "--calibrate", "broken"], "none of the 1 images of --calibrate broken can be read"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    argv: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export_onnx, "_load", lambda *_: tiny())
    for folder in ("images", "empty", "one", "broken"):
        Path(folder).mkdir()
    Image.new("RGB", (40, 40)).save("one/1.png")
    for name in ("1.png", "2.png"):
        Path("broken", name).write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    assert run_tool(export_onnx.main, ["test_resnet", "--out", "m.onnx", *argv]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence in message
    assert sorted(tmp_path.rglob("*")) == before


def test_images_that_cannot_be_read_are_named_and_left_out(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "class0").mkdir()
    (tmp_path / "class0" / "broken.png").write_bytes(b"no picture")
    samples = find_samples(tmp_path, "val", tiny(), "--data")
    with pytest.raises(UserError, match="none of the images"):
        measure(full, full, batches(samples, tiny(), (3, 32, 32)), maps=False)
    assert "broken.png cannot be read" in capsys.readouterr().err


# ---- images and classes


def test_classes_come_from_the_checkpoints_folders_or_from_imagenets() -> None:
    assert class_indices(tiny()) == {"class0": 0, "class1": 1, "class2": 2, "class3": 3}
    thousand = Classifier("van_b0", timm.create_model("van_b0", device="meta"))
    assert class_indices(thousand)["n01440764"] == 0
    assert class_indices(Classifier("van_b0", timm.create_model("van_b0", num_classes=5, device="meta"))) == {}


@pytest.mark.parametrize("split", ["train", "val"])
def test_of_a_folder_that_make_dataset_wrote_the_part_with_classes_is_taken(split: str, tmp_path: Path) -> None:
    for place in ("imagenet/train/class1/0.png", "imagenet/val/class2/1.png", "coco/val2017/2.png", "ade20k/3.png"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    (sample,) = find_samples(tmp_path, split, tiny(), "--data")
    assert (sample.path.parts[-3], sample.target) == (split, {"train": 1, "val": 2}[split])


def test_a_folder_with_the_other_split_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "class1").mkdir(parents=True)
    with pytest.raises(UserError, match=r"--data \S+ has train/ and no val/; --data \S+/train takes that one"):
        find_samples(tmp_path, "val", tiny(), "--data")


def test_top1_says_of_how_many_images_it_is_where_not_all_have_a_class(full: Path) -> None:
    prepared = iter([(torch.randn(4, 3, 32, 32), [None, 0, None, 1])])
    accuracy = measure(full, full, prepared, maps=False)
    assert (accuracy.images, accuracy.labelled) == (4, 2)
    assert "of 4 images, top-1 " in str(accuracy)
    assert "points) of the 2 with a class" in str(accuracy)


def test_folders_that_are_no_classes_leave_agreement_alone(images: Path, half: Reduced) -> None:
    classifier = tiny()
    classifier.folders = []
    samples = find_samples(images, "val", classifier, "--data")
    assert {sample.target for sample in samples} == {None}
    prepared = iter([(torch.randn(2, 3, 32, 32), [None, None])])
    accuracy = measure(half[0], half[0], prepared, maps=False)
    assert (accuracy.agreement, accuracy.top1, accuracy.difference) == (1, None, 0)
    assert str(accuracy).endswith("no top-1, since no image lies in a folder of a class that the model knows")


def test_calibration_takes_images_from_everywhere() -> None:
    samples = [Sample(Path(f"{number}.png"), None) for number in range(1000)]
    chosen = [int(sample.path.stem) for sample in spread(samples, 10)]
    assert chosen == list(range(0, 1000, 100))
    assert spread(samples[:3], 10) == samples[:3]


# ---- real networks


@pytest.mark.all
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("name", one_per_family())
def test_every_family_can_be_reduced(name: str, features: bool, calibrated: bool, images: Path, tmp_path: Path) -> None:
    stages = len(timm.create_model(name, device="meta").stages)
    options = {"depths": (1,) * stages}
    model = timm.create_model(name, num_classes=4, **options)
    size = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    classifier = Classifier(name, model, FOLDERS, FOLDERS, options, size)
    calibrate = images if calibrated else None
    _, accuracy = export_reduced(classifier, tmp_path / "m.onnx", calibrate, images, features)
    assert accuracy is not None
    assert accuracy.difference < (0.1 if calibrated else 0.01)
