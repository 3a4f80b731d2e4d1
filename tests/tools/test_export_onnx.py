"""export_onnx: files that agree with PyTorch at sizes they were not traced at, or a sentence and no file."""

import json
import re
import resource
import signal
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
import vertebra
from onnx_files import assert_close, free_axes, run
from safetensors.torch import save_file
from small_networks import Scale
from vertebra.backbones._errors import UserError
from vertebra.tools import export_onnx
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import run_tool
from vertebra.tools._export import checks, onnx_graph
from vertebra.tools._export.checks import Report
from vertebra.tools._export.classifier import export
from vertebra.tools._export.model import read_metadata

LABELS = ["zero", "one", "two"]


@pytest.fixture(scope="module")
def small() -> Classifier:
    """A VAN of one block a stage with random drop path, three named classes, evaluated at 64 pixels."""
    torch.manual_seed(0)
    model = timm.create_model("van_b0", depths=(1, 1, 1, 1), num_classes=3, drop_path_rate=0.5)
    return Classifier("van_b0", model, LABELS, changes={"input_size": (3, 64, 64), "crop_pct": 1.0})


@pytest.fixture(scope="module")
def exported(small: Classifier, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The classifier's file and report; the model stood in training mode before."""
    out = tmp_path_factory.mktemp("export") / "new" / "van.onnx"
    small.model.train()
    return out, export(small, out)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# ---- what is exported


def test_random_weights_are_the_same_every_time(tmp_path: Path) -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert export_onnx.main(["test_resnet", "--static", "32x32", "--out", str(tmp_path / f"{seed}.onnx")]) == 0
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (5, 3, 97, 35), (2, 3, 32, 160)])
def test_answers_as_pytorch_at_sizes_that_nothing_was_traced_or_checked_at(
    small: Classifier, exported: tuple[Path, Report], shape: tuple[int, ...]
) -> None:
    images = noise(*shape)
    with torch.inference_mode():
        expected = small.model.eval()(images)
    assert_close(run(exported[0], images)[0], expected)


def test_reports_the_largest_difference_at_three_sizes_and_batch_sizes_one_of_them_a_single_image(
    exported: tuple[Path, Report],
) -> None:
    out, report = exported
    assert [check.shape for check in report.checks] == [(3, 3, 171, 259), (2, 3, 203, 333), (1, 3, 64, 64)]
    assert 0 < report.difference <= 1e-4
    assert f"{report.difference:.1e}" in str(report)
    assert "free batch, height and width" in str(report)
    assert free_axes(out) == [0, 2, 3]
    assert (report.file, report.data_file, report.outputs) == (out, None, ("logits",))


def test_file_is_one_file_with_nothing_beside_it(exported: tuple[Path, Report]) -> None:
    assert list(exported[0].parent.iterdir()) == [exported[0]]


def test_file_names_its_model_labels_and_image_preparation(exported: tuple[Path, Report]) -> None:
    session = onnxruntime.InferenceSession(exported[0], providers=["CPUExecutionProvider"])
    known = read_metadata(session.get_modelmeta().custom_metadata_map)
    assert known == {
        "model_name": "van_b0",
        "task": "classification",
        "labels": LABELS,
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "vertebra": vertebra.__version__,
    }


def test_file_says_nothing_of_the_machine_that_wrote_it(exported: tuple[Path, Report]) -> None:
    content = exported[0].read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_file_holds_standard_operators_that_draw_no_numbers(exported: tuple[Path, Report]) -> None:
    nodes = onnx.load(exported[0]).graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    assert not [node.op_type for node in nodes if "Random" in node.op_type or node.op_type == "Dropout"]


@pytest.mark.all
def test_features_are_the_maps_of_features_only_named_by_stride(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet")
    report = export(Classifier("test_resnet", model), tmp_path / "maps.onnx", features=True)
    images = noise(2, 3, 75, 110)
    with torch.inference_mode():
        maps = model.eval().forward_intermediates(images, intermediates_only=True)
    assert report.outputs == ("stride2", "stride4", "stride8", "stride16", "stride32")
    for found, expected in zip(run(tmp_path / "maps.onnx", images), maps, strict=True):
        assert_close(found, expected)


def test_model_of_one_size_needs_static_and_says_so(tmp_path: Path) -> None:
    vit = Classifier("test_vit", timm.create_model("test_vit", num_classes=3))
    with pytest.raises(UserError, match=r"test_vit cannot run on an image of 171x259 .*--static"):
        export(vit, tmp_path / "vit.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.all
def test_model_of_one_size_exports_at_that_size(tmp_path: Path) -> None:
    vit = Classifier("test_vit", timm.create_model("test_vit", num_classes=3))
    report = export(vit, tmp_path / "vit.onnx", static=(160, 160))
    assert [check.shape for check in report.checks] == [(3, 3, 160, 160), (2, 3, 160, 160), (1, 3, 160, 160)]
    assert "fixed size" in str(report)
    assert free_axes(tmp_path / "vit.onnx") == [0]


def test_command_exports_a_checkpoint_and_prints_its_report_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on the way: weights too large for one file lie beside it, and an older export is replaced."""
    model = timm.create_model("test_resnet", num_classes=3)
    meta = {"model_name": "test_resnet", "num_classes": 3, "labels": LABELS}
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata={"vertebra": json.dumps(meta)})
    out = tmp_path / "m.onnx"
    monkeypatch.setattr(onnx_graph, "ONE_FILE_LIMIT", 0)
    checkpoint = str(tmp_path / "w.safetensors")
    argv = ["test_resnet", "--checkpoint", checkpoint, "--out", str(out), "--opset", "18", "--static", "64x96"]
    assert run_tool(export_onnx.main, argv) == 0
    printed, warned = capfd.readouterr()
    assert warned == ""
    assert printed.splitlines()[0].startswith(f"{out} and, as it is too large for one file, {out}.data")
    assert len(printed.splitlines()) == 6
    assert "opset 18" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data", "w.safetensors"]
    images = noise(4, 3, 64, 96)
    with torch.inference_mode():
        assert_close(run(out, images)[0], model.eval()(images))


# ---- what is not exported


def older_export() -> bytes:
    """The smallest file that counts as ONNX."""
    return onnx.helper.make_model(onnx.helper.make_graph([onnx.NodeProto()], "g", [], [])).SerializeToString()


def test_failure_leaves_no_empty_table_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "_load", lambda *_: Classifier("test_resnet", _Noisy(2.0)))
    argv = ["test_resnet", "--out", str(tmp_path / "new/dir/m.onnx"), "--csv", str(tmp_path / "new/tables/t.csv")]
    assert run_tool(export_onnx.main, [*argv, "--static", "32x32"]) == 2
    assert not list(tmp_path.iterdir())


def test_result_that_differs_leaves_no_file_and_the_older_one_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Classifier("test_resnet", Scale(2.0))
    out = tmp_path / "m.onnx"
    out.write_bytes(older_export())
    before = out.read_bytes()
    monkeypatch.setattr(checks, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"differs from PyTorch by .* of the output's standard deviation"):
        export(tiny, out, static=(32, 32))
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == before


def test_model_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"random numbers .*RandomUniform"):
        export(Classifier("test_resnet", _Noisy(2.0)), tmp_path / "m.onnx", static=(32, 32))
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    tiny, out = Classifier("test_resnet", Scale(2.0)), tmp_path / "m.onnx"
    out.write_bytes(older_export())
    before = out.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            export(tiny, out, static=(32, 32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == before


class _Noisy(Scale):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand_like(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["van_b00", "--out", "m.onnx"], "no model 'van_b00' in timm or vertebra. Did you mean van_b0"),
        (["van_b0", "--out", "m.onnx", "--static", "224"], "'224' is not a size"),
        (
            ["van_b0", "--out", "m.onnx", "--cfg-options", "a=1"],
            "--cfg-options changes a config, and van_b0 is a model",
        ),
        (["van_b0", "--out", "m.onnx", "--static", "0x64"], "'0x64' is not a size"),
        (
            ["maxvit_tiny_tf_224", "--out", "m.onnx", "--static", "203x333"],
            "maxvit_tiny_tf_224 cannot run on an image of 203x333 ",
        ),
        (["van_b0", "--out", "m.onnx", "--opset", "17"], "--opset 17 cannot be written; from 18 to"),
        (["van_b0", "--out", "m.onnx", "--opset", "999"], "--opset 999 cannot be written; from 18 to"),
        (["van_b0", "--out", "folder"], "--out folder is a folder"),
        (["van_b0", "--out", "text.txt"], "--out text.txt exists and is no ONNX file"),
        (["van_b0", "--out", "text.txt/m.onnx"], "--out text.txt/m.onnx cannot be written: .*text.txt is no folder"),
        (["van_b0", "--out", "m" * 300], "cannot be written: File name too long"),
        (["imagenet/van_b00", "--out", "m.onnx"], "no config 'imagenet/van_b00'"),
        (["van_b0", "--out", "m.onnx", "--checkpoint", "gone.pth"], "checkpoint gone.pth does not exist"),
        (["van_b0", "--out", "m.onnx", "--checkpoint", "text.txt"], "text.txt is truncated or no checkpoint file"),
        (["van_b0", "--out", "m.onnx", "--device", "toaster"], "--device toaster cannot be used here"),
    ],
)
def test_bad_input_is_one_sentence_and_touches_nothing(
    argv: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("precious")
    assert run_tool(export_onnx.main, argv) == 2
    message = [line for line in capsys.readouterr().err.splitlines() if "no --checkpoint given" not in line]
    assert len(message) == 1
    assert re.search(sentence, message[0])
    assert (tmp_path / "text.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "text.txt"]


def test_missing_runtime_names_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert run_tool(export_onnx.main, ["van_b0", "--out", str(tmp_path / "m.onnx")]) == 2
    assert 'pip install "vertebra[export]"' in capsys.readouterr().err


def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        export_onnx.main(["--help"])
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("  vertebra export_onnx van_b0")
