"""convert_checkpoint: the weights of any training file come out, and nothing in it is run."""

import argparse
import copyreg
import functools
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from torch import nn
from vertebra.backbones._errors import UserError
from vertebra.tools._classifier import load_classifier
from vertebra.tools._common import run_tool
from vertebra.tools._inert_pickle import Foreign, read_inert
from vertebra.tools.convert_checkpoint import convert, main

FORMATS = pytest.mark.parametrize(
    ("zipped", "protocol"), [(True, 2), (True, 4), (True, 5), (False, 2), (False, 4)], ids=str
)


@pytest.fixture
def small() -> nn.Module:
    """timm's tiny ResNet with five classes and norms that are not as initialised."""
    model = timm.create_model("test_resnet", num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return model.eval()


def other(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights for the same model that differ in every float."""
    return {key: value + 1 if value.is_floating_point() else value for key, value in model.state_dict().items()}


def training_state() -> dict[str, Any]:
    """What training scripts leave beside the weights."""
    return {
        "epoch": 299,
        "args": argparse.Namespace(model="x", lr=1e-3),
        "config": SimpleNamespace(nested=defaultdict(list, a=[Path("x")])),
        "loss": functools.partial(print, "called"),
        "amp": {"scale": 65536.0},
        "whole": nn.Linear(2, 2),
    }


# ---- what comes out


@FORMATS
def test_converted_file_gives_the_logits_of_the_weights_beside_foreign_objects(
    small: nn.Module, tmp_path: Path, zipped: bool, protocol: int
) -> None:
    content = {"model": small.state_dict(), **training_state()}
    torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    made = convert("test_resnet", tmp_path / "a.pth", tmp_path / "new" / "a.safetensors")
    assert {"argparse.Namespace", "functools.partial", "collections.defaultdict"} <= set(made.left_out)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(load_classifier("test_resnet", made.file).model(images), small(images))


def test_authors_keys_become_ours_with_the_same_weights(golden: Callable[[str], Any], tmp_path: Path) -> None:
    van = golden("van_b0")
    torch.save({"state_dict": van.weights(), "args": argparse.Namespace()}, tmp_path / "van.pth.tar")
    made = convert("van_b0", tmp_path / "van.pth.tar", tmp_path / "van.safetensors")
    assert (made.parameters, made.classes) == (van.parameters, 1000)
    with torch.inference_mode():
        van.assert_logits(van.runs[0], load_classifier("van_b0", made.file).model(van.image(van.runs[0])))


@pytest.mark.parametrize("place", ["state_dict_ema", "model_ema"])
def test_ema_weights_are_taken_first_and_plain_ones_with_raw(small: nn.Module, tmp_path: Path, place: str) -> None:
    torch.save({"model": small.state_dict(), place: other(small)}, tmp_path / "a.pth")
    ema = convert("test_resnet", tmp_path / "a.pth", tmp_path / "ema.safetensors")
    raw = convert("test_resnet", tmp_path / "a.pth", tmp_path / "raw.safetensors", raw=True)
    assert (ema.place, raw.place) == (place, "model")
    key = "fc.weight"
    assert torch.equal(load_classifier("test_resnet", raw.file).model.state_dict()[key], small.state_dict()[key])
    assert torch.equal(load_classifier("test_resnet", ema.file).model.state_dict()[key], other(small)[key])
    assert f"weights from {place} (EMA)" in str(ema)
    assert "(EMA)" not in str(raw)


def test_file_says_its_model_classes_and_options_as_json(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "a.pth")
    made = convert("test_resnet", tmp_path / "a.pth", tmp_path / "a.safetensors")
    with safe_open(made.file, framework="pt") as file:
        known = json.loads(file.metadata()["vertebra"])
    assert known == {"model_name": "test_resnet", "num_classes": 5, "options": {}}


def test_file_of_this_projects_training_keeps_options_labels_and_transform(tmp_path: Path) -> None:
    model = timm.create_model("van_b0", depths=(1, 1, 1, 1), num_classes=2).eval()
    known = {
        "model_name": "van_b0",
        "num_classes": 2,
        "options": {"depths": (1, 1, 1, 1)},
        "labels": ["cat", "dog"],
        "transform": {"input_size": (3, 64, 64)},
    }
    weights = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": weights, "meta": {"vertebra": known}, "message_hub": {}}, tmp_path / "epoch_1.pth")
    made = convert("van_b0", tmp_path / "epoch_1.pth", tmp_path / "van.safetensors")
    classifier = load_classifier("van_b0", made.file)
    assert classifier.labels == ["cat", "dog"]
    assert classifier.data["input_size"] == (3, 64, 64)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(classifier.model(images), model(images))
    with pytest.raises(UserError, match=r"is of van_b0, not of van_b1"):
        convert("van_b1", tmp_path / "epoch_1.pth", tmp_path / "b1.safetensors")


def test_trunk_without_classifier_stays_one_and_says_so(golden: Callable[[str], Any], tmp_path: Path) -> None:
    weights = {f"backbone.{key}": value for key, value in golden("van_b0").weights().items() if "head" not in key}
    torch.save({"state_dict": {**weights, "decode_head.conv.weight": torch.ones(2)}}, tmp_path / "dense.pth")
    made = convert("van_b0", tmp_path / "dense.pth", tmp_path / "trunk.safetensors")
    assert made.classes is None
    assert "no classifier" in str(made)
    with safe_open(made.file, framework="pt") as file:
        assert not [key for key in file.keys() if key.startswith("head")]  # noqa: SIM118
        assert "num_classes" not in json.loads(file.metadata()["vertebra"])
    with pytest.raises(UserError, match="has no classifier"):
        load_classifier("van_b0", made.file)


def test_tensors_of_every_kind_are_read_as_pytorch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    content = {
        "view": base[4:].view(4, 5).t(),
        "shared": base,
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "bool": torch.tensor([True, False]),
        "long": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "complex": torch.randn(2, dtype=torch.complex64),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        "uint16": torch.ones(3, dtype=torch.uint16),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        read, left_out = read_inert(tmp_path / "a.pth")
        assert left_out == []
        for key, value in content.items():
            assert (read[key].dtype, read[key].shape) == (value.dtype, value.shape)
            assert (
                read[key]
                .contiguous()
                .view(-1)
                .view(torch.uint8)
                .equal(value.detach().contiguous().view(-1).view(torch.uint8))
            )


def test_report_names_count_place_and_checksum(
    small: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": small.state_dict(), "args": argparse.Namespace()}, tmp_path / "a.pth")
    out = tmp_path / "a.safetensors"
    assert run_tool(main, ["test_resnet", str(tmp_path / "a.pth"), str(out)]) == 0
    printed = capsys.readouterr().out
    parameters = sum(p.numel() for p in small.parameters())
    assert f"{parameters:,} parameters, a classifier of 5 classes; weights from model\n" in printed
    assert "not loaded, and not run: argparse.Namespace" in printed
    assert subprocess.check_output(["sha256sum", out], text=True).split()[0] in printed


# ---- what is not run


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


class SetsState:
    """Pickles as an object whose state is set by code of its class."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


def _code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda marker: Calls(os.system, f"touch {marker}"),
    "eval": lambda marker: Calls(eval, _code(marker)),
    "exec": lambda marker: Calls(exec, _code(marker)),
    "open": lambda marker: Calls(open, str(marker), "w"),
    "Popen": lambda marker: Calls(subprocess.check_call, ["touch", str(marker)]),
    "inside arguments": lambda marker: argparse.Namespace(a=[{"b": Calls(dict, [("c", Calls(eval, _code(marker)))])}]),
    "as a key": lambda marker: {Calls(os.system, f"touch {marker}"): 1},
    "in a tensor": lambda marker: Calls(torch._utils._rebuild_tensor_v2, Calls(eval, _code(marker)), 0, (1,), (1,)),
    "getattr chain": lambda marker: Calls(
        functools.reduce, getattr, ["touch"], Calls(type, "X", (), {"touch": Calls(eval, _code(marker))})
    ),
    "__setstate__": SetsState,
    "pickle in a pickle": lambda marker: Calls(pickle.loads, pickle.dumps(Calls(eval, _code(marker)))),
    "torch.load": lambda marker: Calls(torch.storage._load_from_bytes, _saved(Calls(eval, _code(marker)))),
    "torch.hub": lambda marker: Calls(torch.hub._load_local, str(_hub(marker)), "entry"),
}


def _saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _hub(marker: Path) -> Path:
    folder = marker.parent / "hub"
    folder.mkdir(exist_ok=True)
    (folder / "hubconf.py").write_text(f"{_code(marker)}\ndef entry(): pass\n")
    return folder


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_in_a_hostile_file_is_run_and_its_weights_come_out(
    small: nn.Module, tmp_path: Path, kind: str, zipped: bool
) -> None:
    marker = tmp_path / "ran"
    content = {"first": HOSTILE[kind](marker), "model": small.state_dict(), "last": HOSTILE[kind](marker)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    marker.unlink(missing_ok=True)
    made = convert("test_resnet", tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert not marker.exists()
    with safe_open(made.file, framework="pt") as file:
        assert torch.equal(file.get_tensor("fc.weight"), small.state_dict()["fc.weight"])


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_of_the_test_above_do_run_when_they_are_unpickled(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "ran"
    content = _saved(HOSTILE[kind](marker))
    marker.unlink(missing_ok=True)
    try:
        torch.load(io.BytesIO(content), weights_only=False)
    except Exception as error:  # after the deed: what was called gave no tensor back
        print(error)
    assert marker.exists()


def _instructions(marker: Path) -> dict[str, bytes]:
    """Pickles written by hand, one for each instruction that leads to code in Python's own unpickler."""
    command = f"touch {marker}".encode()
    text = b"X" + len(command).to_bytes(4, "little") + command
    return {
        "REDUCE": b"\x80\x02cposix\nsystem\n(" + text + b"tR.",
        "INST": b"(" + text + b"iposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\n" + text + b"o.",
        "STACK_GLOBAL, dotted": b"\x80\x04\x8c\x02os\x8c\x0epath.os.system\x93(" + text + b"tR.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n(cos\npath\nX\x02\x00\x00\x00ost\x52.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n((X\x05\x00\x00\x00touchX"
        + len(str(marker)).to_bytes(4, "little")
        + str(marker).encode()
        + b"lt\x81.",
        "EXT1": b"\x80\x02\x82\xf0(" + text + b"tR.",
        "BUILD of a builder": b"\x80\x02ccollections\nOrderedDict\nN}X\x08\x00\x00\x00__code__Ns\x86b)R.",
        "call of a number": b"\x80\x02K\x01)R.",
        "persistent id": b"\x80\x02(X\x06\x00\x00\x00modulecposix\nsystem\n" + text + text + b"tQ.",
    }


@pytest.mark.parametrize("name", ["REDUCE", "INST", "OBJ", "STACK_GLOBAL, dotted"])
def test_programs_of_the_test_below_do_run_when_they_are_unpickled(name: str, tmp_path: Path) -> None:
    pickle.loads(_instructions(tmp_path / "ran")[name])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", _instructions(Path("x")))
@pytest.mark.parametrize("place", ["zip", "header", "content", "keys"])
def test_no_instruction_of_the_pickle_machine_leads_to_code(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "ran"
    program = _instructions(marker)[name]
    monkeypatch.setitem(copyreg._inverted_registry, 0xF0, ("posix", "system"))
    whole = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}, {"model": {}}, [])]
    if place == "zip":
        with zipfile.ZipFile("a.pth", "w") as archive:
            archive.writestr("a/data.pkl", program)
    else:
        at = {"header": 0, "content": 3, "keys": 4}[place]
        Path("a.pth").write_bytes(b"".join([*whole[:at], program, *whole[at + 1 :]]))
    with pytest.raises(UserError):
        convert("test_resnet", "a.pth", "a.safetensors")
    assert os.listdir() == ["a.pth"]


def test_names_in_a_file_are_not_even_imported(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}X\x01\x00\x00\x00acthis\ns\n)Rs.")
    sys.modules.pop("this", None)
    content, left_out = read_inert(tmp_path / "a.pth")
    assert isinstance(content["a"], Foreign)
    assert left_out == ["this.s"]
    assert "this" not in sys.modules


def test_attributes_that_a_file_gives_to_what_builds_tensors_go_nowhere(tmp_path: Path) -> None:
    for state in (b"}X\x05\x00\x00\x00itemsK\x01s", b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86"):
        program = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_parameter\n" + state + b"bs."
        with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
            archive.writestr("a/data.pkl", program)
        builder = read_inert(tmp_path / "a.pth")[0]["a"]
        assert vars(builder) == {}
        assert builder.__defaults__ is None


def test_torchscript_program_is_refused_because_it_is_code(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(UserError, match="is a TorchScript program"):
        convert("test_resnet", tmp_path / "a.pt", tmp_path / "a.safetensors")


# ---- what cannot be converted


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_is_one_sentence_at_every_cut(small: nn.Module, tmp_path: Path, zipped: bool) -> None:
    torch.save({"model": small.state_dict()}, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "whole.pth").read_bytes()
    for cut in (1, 3, 40, 1000, len(content) // 2, len(content) - 2000, len(content) - 1):
        (tmp_path / "cut.pth").write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"cut.pth is truncated or no checkpoint file"):
            convert("test_resnet", tmp_path / "cut.pth", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_damaged_files_are_never_more_than_a_sentence(small: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": small.state_dict()}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pth").read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        for place in torch.randint(2000, (4,), generator=generator).tolist():
            damaged[place] = int(torch.randint(256, (), generator=generator))
        (tmp_path / "b.pth").write_bytes(damaged)
        try:
            read_inert(tmp_path / "b.pth")
        except UserError:
            refused += 1
    assert refused > 50


@pytest.fixture
def bad(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of every sort, made the current one."""
    monkeypatch.chdir(tmp_path)
    torch.save(small.state_dict(), "good.pth")
    torch.save([1, 2], "list.pth")
    torch.save(nn.Linear(2, 2), "module.pth")
    torch.save({"epoch": 1}, "empty_dict.pth")
    torch.save({"epoch": 1, "model_ema": small.state_dict()}, "ema_only.pth")
    Path("text.pth").write_text("<html>404</html>")
    Path("zero.pth").touch()
    Path("there.safetensors").write_text("precious")
    Path("folder").mkdir()
    with zipfile.ZipFile("other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["test_resnett", "good.pth", "new.safetensors"], "no model 'test_resnett'.* Did you mean test_resnet"),
        (["test_resnet", "gone.pth", "new.safetensors"], "gone.pth does not exist"),
        (["test_resnet", "folder", "new.safetensors"], "folder is no file"),
        (["test_resnet", "zero.pth", "new.safetensors"], "zero.pth is empty"),
        (["test_resnet", "text.pth", "new.safetensors"], "text.pth is truncated or no checkpoint"),
        (["test_resnet", "other.zip", "new.safetensors"], "other.zip is a zip file, but no checkpoint"),
        (["test_resnet", "list.pth", "new.safetensors"], "list.pth holds a list"),
        (["test_resnet", "module.pth", "new.safetensors"], "module.pth holds a torch.nn.modules.linear.Linear"),
        (["test_resnet", "empty_dict.pth", "new.safetensors"], "holds no weights; its keys are epoch"),
        (["test_resnet", "ema_only.pth", "new.safetensors", "--raw"], "holds no weights; its keys are epoch"),
        (["van_b0", "good.pth", "new.safetensors"], r"conv1\.\d\.weight|conv1\.weight"),
        (["test_vit", "good.pth", "new.safetensors"], r"does not fit test_vit.*blocks\.0"),
        (["test_resnet", "good.pth", "new.pth"], "new.pth must end in .safetensors"),
        (["test_resnet", "good.pth", "there.safetensors"], "there.safetensors exists, and not with this content"),
        (["test_resnet", "good.pth", "text.pth/a.safetensors"], "text.pth/a.safetensors cannot be written"),
        (["test_resnet", "good.pth", "new.safetensors", "--device", "toaster"], "--device toaster cannot be used"),
    ],
)
def test_bad_input_is_one_sentence_and_touches_nothing(
    argv: list[str], sentence: str, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir(bad))
    assert run_tool(main, argv) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, message)
    assert sorted(os.listdir(bad)) == before
    assert Path("there.safetensors").read_text() == "precious"


def test_converting_again_finds_the_same_file_and_leaves_it(bad: Path) -> None:
    first = convert("test_resnet", "good.pth", "new.safetensors")
    stamp = Path("new.safetensors").stat().st_mtime_ns
    again = convert("test_resnet", "good.pth", "new.safetensors")
    assert (first.was_there, again.was_there) == (False, True)
    assert again.sha256 == first.sha256
    assert Path("new.safetensors").stat().st_mtime_ns == stamp


def test_full_disk_leaves_nothing_behind(bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(bad))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        code = run_tool(main, ["test_resnet", "good.pth", "new.safetensors"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2
    assert "larger than this process may write" in capsys.readouterr().err
    assert sorted(os.listdir(bad)) == before


def test_help_ends_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("  vertebra convert_checkpoint van_b0")
