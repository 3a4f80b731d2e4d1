"""The one loader of checkpoint files: what it reads, what it refuses, and that nothing in a file is run."""

import argparse
import copy
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import vertebra.backbones  # noqa: F401  registers the names
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from vertebra.backbones._checkpoint import check_archive, find_weights, load_weights, read_checkpoint, weights_place
from vertebra.backbones._errors import UserError

ONE, TWO, THREE = ({"w": torch.full((2,), value)} for value in (1.0, 2.0, 3.0))


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.args


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda marker: Calls(os.system, f"touch {marker}"),
    "eval": lambda marker: Calls(eval, f"open({str(marker)!r}, 'w').close()"),
    "open": lambda marker: Calls(open, str(marker), "w"),
    "Popen": lambda marker: Calls(subprocess.check_call, ["touch", str(marker)]),
    "nested": lambda marker: [{"a": (Calls(dict, [("c", Calls(os.system, f"touch {marker}"))]),)}],
    "in a tensor": lambda marker: Calls(
        torch._utils._rebuild_tensor_v2, Calls(os.system, f"touch {marker}"), 0, (1,), (1,)
    ),
    "in an array": lambda marker: Calls(np._core.multiarray.scalar, Calls(os.system, f"touch {marker}"), b""),
}


@pytest.mark.parametrize("file_name", ["a.pth", "a.pth.tar", "a.bin", "a.safetensors"])
@pytest.mark.parametrize(("zipped", "protocol"), [(True, 2), (True, 5), (False, 2), (False, 5)], ids=str)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickle_is_refused_under_any_file_name_and_nothing_runs(
    kind: str, zipped: bool, protocol: int, file_name: str, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    content = {"state_dict": ONE, "hook": HOSTILE[kind](marker)}
    torch.save(content, tmp_path / file_name, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    marker.unlink(missing_ok=True)
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / file_name)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_refusal_names_what_would_be_called_and_the_command_that_takes_the_weights_out(
    zipped: bool, tmp_path: Path
) -> None:
    content = {"state_dict": ONE, "args": argparse.Namespace(lr=1)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"would call argparse.Namespace; .*vertebra convert_checkpoint NAME FILE OUT"):
        read_checkpoint(tmp_path / "a.pth")


def test_torchscript_program_is_refused_because_it_is_code(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(UserError, match="is a TorchScript program"):
        read_checkpoint(tmp_path / "a.pt")


# ---- files that are damaged or something else


def _bytes(kind: str) -> bytes:
    weights = timm.create_model("test_resnet").state_dict()
    if kind == "safetensors":
        from safetensors.torch import save

        return save(weights)
    buffer = io.BytesIO()
    torch.save({"state_dict": weights}, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
def test_truncated_file_is_named_wherever_it_was_cut(kind: str, tmp_path: Path) -> None:
    content, path = _bytes(kind), tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    path.write_bytes(content)
    assert find_weights(read_checkpoint(path))
    for cut in (1, 2, 7, 60, 999, len(content) // 2, len(content) - 999, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=f"{path.name} is (truncated or no checkpoint file|refused)"):
            read_checkpoint(path)


def test_a_changed_byte_among_the_weights_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"state_dict": {"weight": torch.full((1000,), 0.5)}}, path)
    check_archive(path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor(0.5).numpy().tobytes() * 10) + 2] ^= 1
    path.write_bytes(content)
    read_checkpoint(path)  # which does not notice
    with pytest.raises(UserError, match=r"a\.pth is damaged: the bytes of .* are not those that were written"):
        check_archive(path)


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
def test_a_file_that_is_whole_or_no_archive_passes_the_comparison(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(_bytes(kind))
    check_archive(path)
    path.write_bytes(_bytes(kind)[:100])
    check_archive(path)


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
def test_damaged_file_is_never_more_than_a_sentence_and_no_warning(kind: str, tmp_path: Path) -> None:
    content, path = _bytes(kind), tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    generator = torch.Generator().manual_seed(0)
    sentences = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            damaged = bytearray(content)
            for place in torch.randint(3000, (6,), generator=generator).tolist():
                damaged[place] = int(torch.randint(256, (), generator=generator))
            path.write_bytes(damaged)
            try:
                read_checkpoint(path)
            except UserError as error:
                sentences.append(str(error))
    assert len(sentences) > 50
    assert not [sentence for sentence in sentences if "\n" in sentence]


def _text(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>\n")


def _image(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path, "PNG")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: None, "does not exist"),
        (Path.mkdir, "is no file"),
        (Path.touch, r"is empty \(0 bytes\)"),
        (_text, "is truncated or no checkpoint file"),
        (_image, "is truncated or no checkpoint file|is refused"),
        (lambda path: torch.save([torch.ones(2)], path), "holds a list; a dictionary of weights"),
        (lambda path: torch.save(torch.ones(2), path), "holds a Tensor; a dictionary of weights"),
        (lambda path: save_file(ONE, path), "is truncated or no checkpoint file"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(make: Callable[[Path], Any], sentence: str, tmp_path: Path) -> None:
    make(tmp_path / "a.pth")
    with pytest.raises(UserError, match=f"checkpoint .*a.pth ({sentence})") as caught:
        read_checkpoint(tmp_path / "a.pth")
    assert len(str(caught.value).splitlines()) == 1


def test_a_reason_is_given_in_words_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"\x80\x02he.")  # PyTorch's unpickler says "101", the byte
    with pytest.raises(UserError, match=r"truncated or no checkpoint file \(\D*\); what torch.save"):
        read_checkpoint(tmp_path / "a.pth")


def test_an_empty_dictionary_is_said_to_be_empty() -> None:
    with pytest.raises(UserError, match="the checkpoint holds no weights; it is empty"):
        find_weights({})


# ---- files that are read

_MMENGINE = """
import sys, torch, numpy as np
from mmengine.logging import HistoryBuffer, MessageHub
hub = MessageHub("run")
hub.update_scalar("train/loss", 0.5)
hub.update_info("epoch", np.int64(3))
torch.save({
    "state_dict": {"w": torch.full((2,), 1.0)}, "ema_state_dict": {"w": torch.full((2,), 2.0)},
    "meta": {"epoch": np.int64(3), "lr": np.float32(0.5), "seeds": np.arange(3)},
    "message_hub": hub.state_dict(),
}, sys.argv[1])
"""


@pytest.fixture(scope="module")
def mmengine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with what mmengine's runner stores, made in a process of its own."""
    pytest.importorskip("mmengine")
    path = tmp_path_factory.mktemp("mmengine") / "epoch_3.pth"
    subprocess.run([sys.executable, "-c", _MMENGINE, path], check=True)
    return path


def test_mmengines_file_is_read_with_its_history_when_mmengine_is_there(mmengine_file: Path) -> None:
    from mmengine.logging import HistoryBuffer

    read = read_checkpoint(mmengine_file)
    history = read["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(history, HistoryBuffer)
    assert history.current() == 0.5
    assert (read["meta"]["epoch"], read["meta"]["lr"], read["meta"]["seeds"].tolist()) == (3, 0.5, [0, 1, 2])


def test_mmengines_file_is_read_where_mmengine_is_not_installed(mmengine_file: Path) -> None:
    program = (
        "import sys; sys.modules['mmengine'] = None\n"
        "from vertebra.backbones._checkpoint import find_weights, read_checkpoint\n"
        "read = read_checkpoint(sys.argv[1])\n"
        "print(find_weights(read)['w'][0].item(), find_weights(read, raw=True)['w'][0].item(), read['meta']['epoch'])"
    )
    done = subprocess.run([sys.executable, "-c", program, mmengine_file], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1.0", "2.0", "3"]


def test_safetensors_come_with_their_metadata_decoded(tmp_path: Path) -> None:
    save_file(ONE, tmp_path / "a.safetensors", metadata={"vertebra": json.dumps({"labels": ["a"]}), "note": "plain"})
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert read["meta"] == {"vertebra": {"labels": ["a"]}, "note": "plain"}
    assert torch.equal(find_weights(read)["w"], ONE["w"])


@pytest.mark.parametrize(
    ("checkpoint", "place", "raw_place"),
    [
        (ONE, "", ""),
        ({"model": ONE, "epoch": 1}, "model", "model"),
        ({"model": ONE, "state_dict": TWO}, "state_dict", "state_dict"),
        ({"model": ONE, "model_ema": TWO}, "model_ema", "model"),
        ({"model": ONE, "model_ema": TWO, "state_dict_ema": THREE}, "state_dict_ema", "model"),
        ({"state_dict": ONE, "state_dict_ema": TWO}, "state_dict_ema", "state_dict"),
        ({"state_dict": ONE, "state_dict_ema": None}, "state_dict", "state_dict"),
        ({"state_dict": ONE, "ema_state_dict": TWO, "message_hub": {}}, "state_dict", "ema_state_dict"),
        ({"state_dict": ONE, "message_hub": {}}, "state_dict", "state_dict"),
    ],
)
def test_weights_are_found_in_timms_order_and_ema_first(checkpoint: dict[str, Any], place: str, raw_place: str) -> None:
    for raw, expected in ((False, place), (True, raw_place)):
        assert weights_place(checkpoint, raw) == expected
        weights = checkpoint[expected] if expected else checkpoint
        assert find_weights(checkpoint, raw)["w"] is weights["w"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str) -> None:
    assert list(find_weights({"state_dict": {f"{prefix}w": torch.ones(1)}})) == ["w"]


def test_checkpoint_without_weights_names_the_keys_it_has() -> None:
    with pytest.raises(UserError, match="holds no weights; its keys are epoch, state_dict"):
        find_weights({"epoch": 1, "state_dict": {"a": 1}})


# ---- weights in a model


@pytest.fixture
def model() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=4)


def test_weights_that_fit_are_loaded_whole(model: nn.Module) -> None:
    weights = {f"backbone.{key}": value + 1 for key, value in model.state_dict().items()}
    assert load_weights(model, {"state_dict": weights, "meta": {}}, "F") == []
    assert all(torch.equal(value, weights[f"backbone.{key}"]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("architecture", ["test_resnet", "van_b0"])
def test_classifier_of_another_size_is_reported_and_stays_as_initialised(architecture: str) -> None:
    ours, theirs = (timm.create_model(architecture, num_classes=classes) for classes in (4, 7))
    before = ours.get_classifier().weight.clone()
    fresh = load_weights(ours, theirs.state_dict(), "F")
    assert fresh == [f"{ours.pretrained_cfg['classifier']}.{part}" for part in ("bias", "weight")]
    assert torch.equal(ours.get_classifier().weight, before)


def test_detectors_trunk_may_lack_the_norm_before_the_classifier() -> None:
    vit, weights = (timm.create_model("test_vit", num_classes=4) for _ in range(2))
    weights = weights.state_dict()
    trunk = {key: value for key, value in weights.items() if not key.startswith(("norm.", "head."))}
    assert load_weights(vit, trunk, "F") == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    with pytest.raises(UserError, match=r"it lacks norm\.bias, norm\.weight"):
        load_weights(vit, {key: value for key, value in weights.items() if not key.startswith("norm.")}, "F")


def _without(weights: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in weights.items() if name != key}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: _without(w, "bn1.weight"), r"checkpoint F does not fit test_resnet: it lacks bn1\.weight"),
        (lambda w: {**w, "bn1.weight": torch.ones(3)}, r"it has bn1\.weight as \(3,\), another shape"),
        (lambda w: {**w, "extra": torch.ones(3)}, "it has extra, which the model has not"),
        (lambda w: timm.create_model("test_vit").state_dict(), r"it lacks .* and \d+ more; it has cls_token"),
    ],
)
def test_weights_of_another_model_are_refused_by_key(
    change: Callable[[dict[str, Any]], dict[str, Any]], sentence: str, model: nn.Module
) -> None:
    with pytest.raises(UserError, match=sentence):
        load_weights(model, change(copy.deepcopy(model).state_dict()), "F")


@pytest.mark.parametrize("architecture", ["van_b0", "test_convnext", "test_vit", "test_efficientnet"])
def test_weights_of_another_family_are_a_sentence_for_every_familys_filter(architecture: str, model: nn.Module) -> None:
    with pytest.raises(UserError, match="does not fit") as caught:
        load_weights(timm.create_model(architecture), model.state_dict(), "F")
    assert len(str(caught.value).splitlines()) == 1
