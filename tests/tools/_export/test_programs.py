"""Programs of PyTorch's own: they answer as the model does at any size, in a process that knows nothing of vertebra."""

import ast
import io
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import vertebra
from safetensors.torch import save_file
from small_networks import Scale
from vertebra.backbones import model_names
from vertebra.backbones._errors import UserError
from vertebra.tools import export_onnx
from vertebra.tools._benchmark.worker import why_not_compiled
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import run_tool
from vertebra.tools._export import checks, program_worker, programs

LABELS = ["zero", "one", "two"]
SUFFIXES = {"torchscript": ".pt", "exported": ".pt2", "aoti": ".pt2"}
AOTI = pytest.param(
    "aoti", marks=[pytest.mark.all, pytest.mark.skipif(bool(why_not_compiled("cpu")), reason="no C++ compiler")]
)
SHAPES = ((1, 3, 64, 64), (5, 3, 97, 35), (1, 3, 34, 160))


@pytest.fixture(scope="module")
def small() -> Classifier:
    """A VAN of one block a stage with random drop path, three named classes, evaluated at 64 pixels."""
    torch.manual_seed(0)
    model = timm.create_model("van_b0", depths=(1, 1, 1, 1), num_classes=3, drop_path_rate=0.5)
    options = {"depths": (1, 1, 1, 1)}
    return Classifier("van_b0", model, LABELS, options=options, changes={"input_size": (3, 64, 64), "crop_pct": 1.0})


@pytest.fixture(scope="module", params=["torchscript", pytest.param("exported", marks=pytest.mark.all), AOTI])
def exported(
    request: pytest.FixtureRequest, small: Classifier, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, checks.Report]:
    """Format, file and report; the model stood in training mode before."""
    out = tmp_path_factory.mktemp("programs") / "new" / f"van{SUFFIXES[request.param]}"
    small.model.train()
    return request.param, out, programs.export(small, out, request.param)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.std()


# ---- what is exported


def test_program_answers_as_pytorch_at_sizes_that_nothing_was_traced_or_checked_at(
    small: Classifier, exported: tuple[str, Path, checks.Report]
) -> None:
    kind, out, _ = exported
    program = program_worker.open_program(kind, str(out), "cpu")
    for shape in SHAPES:
        with torch.inference_mode():
            assert_close(program(noise(*shape)), small.model.eval()(noise(*shape)))


def test_report_tells_of_two_sizes_and_three_batch_sizes(exported: tuple[str, Path, checks.Report]) -> None:
    kind, out, report = exported
    assert [check.shape for check in report.checks] == [(3, 3, 171, 259), (2, 3, 203, 333), (1, 3, 64, 64)]
    assert 0 < report.difference <= 1e-4
    assert str(report).startswith(f"{out}: ")
    assert "in a new process against PyTorch" in str(report)
    assert ("sides from 33" in report.details) == (kind != "torchscript")  # the last map is one pixel a side at 32


def test_file_is_one_file_that_says_how_images_are_prepared(exported: tuple[str, Path, checks.Report]) -> None:
    _, out, _ = exported
    assert list(out.parent.iterdir()) == [out]
    assert programs.read_metadata(out) == {
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


def test_pytorchs_own_loaders_hand_the_metadata_out(exported: tuple[str, Path, checks.Report]) -> None:
    kind, out, _ = exported
    found: dict[str, Any] = {programs.METADATA: ""}
    if kind == "torchscript":
        torch.jit.load(out, _extra_files=found)
    elif kind == "exported":
        torch.export.load(out, extra_files=found)
    else:
        found = torch._inductor.aoti_load_package(str(out)).get_metadata()
    assert json.loads(found[programs.METADATA])["labels"] == LABELS


def test_file_says_nothing_of_the_machine_that_wrote_it(exported: tuple[str, Path, checks.Report]) -> None:
    kind, out, _ = exported
    if kind == "aoti":
        pytest.skip("machine code is of a machine")
    with zipfile.ZipFile(out) as archive:
        content = b"".join(map(archive.read, archive.namelist()))
    for folder in (Path(vertebra.__file__).parent, Path(torch.__file__).parent, Path(sys.prefix)):
        assert str(folder).encode() not in content


@pytest.mark.parametrize("kind", ["torchscript", pytest.param("exported", marks=pytest.mark.all), AOTI])
def test_features_are_the_maps_of_features_only_and_the_model_stays_whole(
    small: Classifier, kind: str, tmp_path: Path
) -> None:
    out = tmp_path / f"maps{SUFFIXES[kind]}"
    report = programs.export(small, out, kind, features=True)
    images = noise(2, 3, 75, 110)
    with torch.inference_mode():
        maps = small.model.forward_intermediates(images, intermediates_only=True)
        found = program_worker.open_program(kind, str(out), "cpu")(images)
        assert small.model(images).shape == (2, 3)
    assert report.outputs == ("stride4", "stride8", "stride16", "stride32")
    for ours, theirs in zip(found, maps, strict=True):
        assert_close(ours, theirs)
    assert programs.read_metadata(out)["task"] == "features"


@pytest.mark.all
@pytest.mark.parametrize("kind", ["torchscript", "exported", AOTI])
def test_model_of_one_size_needs_static_and_then_takes_no_other(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit, out = Classifier("test_vit", timm.create_model("test_vit", num_classes=3)), tmp_path / f"v{SUFFIXES[kind]}"
    with pytest.raises(UserError, match=r"test_vit cannot run on an image of 171x259 .*--static"):
        programs.export(vit, out, kind)
    report = programs.export(vit, out, kind, static=(160, 160))
    assert [check.shape for check in report.checks] == [(3, 3, 160, 160), (2, 3, 160, 160), (1, 3, 160, 160)]
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")  # without it a package looks at nothing; with it, one image
    program = program_worker.open_program(kind, str(out), "cpu")  # is refused too, since it was traced with two
    with pytest.raises((RuntimeError, AssertionError, torch.jit.Error)), torch.inference_mode():
        program(noise(2, 3, 160, 192))


def test_graph_is_checked_in_a_new_process_at_free_sizes(tmp_path: Path) -> None:
    """The cheapest one: a network's takes a quarter of a minute."""
    report = programs.export(Classifier("test_resnet", Scale(2.0)), tmp_path / "m.pt2", "exported")
    assert report.free_size
    assert [check.shape[0] for check in report.checks] == [3, 2, 1]
    assert programs.read_metadata(tmp_path / "m.pt2")["model_name"] == "test_resnet"


def test_new_process_needs_pytorch_alone() -> None:
    tree = ast.parse(Path(program_worker.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - sys.stdlib_module_names == {"torch"}


def test_command_exports_a_checkpoint_and_prints_its_report_alone(
    small: Classifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also on the way: an older export is replaced, and a script of one size takes no other."""
    meta = {"model_name": "van_b0", "num_classes": 3, "options": {"depths": [1, 1, 1, 1]}, "labels": LABELS}
    save_file(small.model.state_dict(), tmp_path / "w.safetensors", metadata={"vertebra": json.dumps(meta)})
    out = tmp_path / "van.pt"
    torch.jit.save(torch.jit.script(Scale(2.0)), out, _extra_files={programs.METADATA: '{"task": "old"}'})
    argv = ["van_b0", "--checkpoint", str(tmp_path / "w.safetensors"), "--out", str(out), "--format", "torchscript"]
    assert run_tool(export_onnx.main, [*argv, "--static", "64x96"]) == 0
    printed, warned = capfd.readouterr()
    assert warned == ""
    assert printed.startswith(f"{out}: ")
    assert "(fixed size)" in printed
    assert len(printed.splitlines()) == 6
    assert programs.read_metadata(out)["input_size"] == [3, 64, 96]
    with pytest.raises(torch.jit.Error, match="another size"):
        torch.jit.load(out)(noise(1, 3, 64, 64))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["van.pt", "w.safetensors"]


STRUCTURES = (  # one name of each kind of network
    *{timm.models.model_entrypoint(name).__module__: name for name in reversed(model_names())}.values(),
    *("biformer_stl", "biformer_stl_nchw", "transnext_micro_aaaa_256", "davit_base_fl_fused"),
    *("maxvit_tiny_tf_224_fused", "maxvit_rmlp_pico_rw_256_fused", "maxvit_tiny_pm_256_fused"),
)


@pytest.mark.all
@pytest.mark.timeout(1200)  # the C++ compiler takes minutes for a package of MaxViT
@pytest.mark.parametrize("kind", ["torchscript", "exported", AOTI])
@pytest.mark.parametrize("name", STRUCTURES)
def test_every_kind_of_network_can_be_written_with_free_sizes(name: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    stages = len(timm.create_model(name, device="meta").stages)
    model = timm.create_model(name, depths=(1, 1, 1, 1)[-stages:], num_classes=3)
    report = programs.export(Classifier(name, model), tmp_path / f"m{SUFFIXES[kind]}", kind)
    assert report.free_size
    assert report.difference <= 1e-4


# ---- what is not exported


def test_result_that_differs_leaves_no_file_and_the_older_one_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(Scale(2.0)), out, _extra_files={programs.METADATA: '{"task": "old"}'})
    before = out.read_bytes()
    monkeypatch.setattr(programs, "_run_fresh", lambda *_: [[torch.zeros(batch, 3)] for batch in (3, 2, 1)])
    with pytest.raises(UserError, match=r"TorchScript in a new process differs from .*: nothing was written"):
        programs.export(Classifier("test_resnet", Scale(3.0)), out, "torchscript", static=(32, 32))
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("worker", "why"),
    [
        ("raise SystemExit('no operator x')", "no operator x"),
        ("import os; os.kill(os.getpid(), 9)", "ended with code -9"),
    ],
)
def test_new_process_that_fails_is_told_and_leaves_no_file(
    worker: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(worker)
    monkeypatch.setattr(program_worker, "__file__", str(tmp_path / "worker.py"))
    with pytest.raises(UserError, match=f"cannot be run in a new process: .*{re.escape(why)}"):
        programs.export(Classifier("test_resnet", Scale(3.0)), tmp_path / "m.pt", "torchscript", static=(32, 32))
    assert [path.name for path in tmp_path.iterdir()] == ["worker.py"]


class Unscriptable(Scale):
    """Python that no script can hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + len(io.StringIO("").getvalue())


def test_model_that_cannot_be_scripted_is_told_what_may_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test_resnet cannot be written as TorchScript: .*; --format exported may do"):
        programs.export(Classifier("test_resnet", Unscriptable(2.0)), tmp_path / "m.pt", "torchscript")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--format", "torchscript", "--out", "m.onnx"], "must end in .pt or .ts for --format torchscript"),
        (["--format", "exported", "--out", "m.pt"], "--out m.pt must end in .pt2 for --format exported"),
        (["--format", "exported", "--out", "M.PT2"], "--out M.PT2 must end in .pt2 for --format exported"),
        (["--format", "aoti", "--out", "m.so"], "--out m.so must end in .pt2 for --format aoti"),
        (["--format", "aoti", "--out", "m.pt2"], "--format aoti needs a compiler, and there is no C++ compiler (none)"),
        (["--format", "torchscript", "--out", "w.pt"], "--out w.pt exists and is no program that this tool wrote"),
        (["--format", "torchscript", "--out", "m.pt", "--opset", "18"], "--opset 18 is for ONNX"),
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
    monkeypatch.setenv("CXX", "none")
    torch.save({"precious": torch.ones(1)}, "w.pt")
    before = Path("w.pt").read_bytes()
    assert run_tool(export_onnx.main, ["van_b0", *argv]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert sentence in message
    assert Path("w.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]
