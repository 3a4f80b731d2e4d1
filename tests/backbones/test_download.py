"""Published weights behind a direct link, served on this machine: fetched, checked, kept, or refused and removed."""

import argparse
import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from torch import nn
from vertebra.backbones import _download

Build = Callable[..., nn.Module]
NAME = "van_b0"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; of names that contain `broken` only the first half, as a lost connection would."""

    requests: list[str]
    folder: Path

    def do_GET(self) -> None:
        self.requests.append(self.path)
        path = self.folder / self.path.partition("?")[0].strip("/")
        if not path.exists():
            self.send_error(404, "not here")
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if "broken" in path.name else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """The address of a server, the folder it serves, and the paths asked for so far."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()
    handler = type("FolderHandler", (Handler,), {"folder": folder, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, requests
    server.shutdown()
    server.server_close()
    thread.join()


def load(small: Build, address: str, file: str, cache: Path, **options: object) -> nn.Module:
    overlay = {"url": f"{address}/{file}", "file": "", "hf_hub_id": None}
    return small(NAME, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache, **options)


def publish(model: nn.Module, path: Path, **others: object) -> dict[str, torch.Tensor]:
    weights = {key: torch.full_like(value, 0.5) for key, value in model.state_dict().items()}
    torch.save({"model": weights, **others}, path)
    return weights


@pytest.mark.parametrize("features_only", [False, True])
def test_weights_are_fetched_once_and_loaded(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path, features_only: bool
) -> None:
    address, folder, requests = served
    weights = publish(small(NAME), folder / "weights.pth")
    for _ in range(2):
        model = load(small, address, "weights.pth", tmp_path / "cache", features_only=features_only)
        own = model.state_dict()
        assert own
        assert all(torch.equal(value, weights[key.removeprefix("model.")]) for key, value in own.items())
        assert not model.pretrained_cfg.get("state_dict")
    assert requests == ["/weights.pth"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["weights.pth"]


def test_without_a_folder_of_its_own_the_file_lies_where_pytorch_keeps_them(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, _ = served
    publish(small(NAME), folder / "weights.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    overlay = {"url": f"{address}/weights.pth?download=true"}
    small(NAME, pretrained=True, pretrained_cfg_overlay=overlay)
    assert (tmp_path / "home" / "hub" / "checkpoints" / "weights.pth").is_file()


def test_a_download_that_broke_off_is_refused_in_a_sentence_and_removed(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, folder, _ = served
    publish(small(NAME), folder / "broken.pth")
    with pytest.raises(ValueError, match=r"broken\.pth.*removed, try again.*truncated"):
        load(small, address, "broken.pth", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_broke_off_long_ago_is_removed_too_and_fetched_by_the_next_attempt(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, folder, requests = served
    publish(small(NAME), folder / "weights.pth")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "weights.pth").write_bytes((folder / "weights.pth").read_bytes()[:1000])
    with pytest.raises(ValueError, match="removed, try again"):
        load(small, address, "weights.pth", cache)
    load(small, address, "weights.pth", cache)
    assert requests == ["/weights.pth"]


@pytest.mark.parametrize("right", [True, False])
def test_a_hash_in_the_files_name_is_checked(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path, right: bool
) -> None:
    address, folder, _ = served
    publish(small(NAME), folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()[:8]
    name = f"weights-{digest if right else '0123abcd'}.pth"
    (folder / "weights.pth").rename(folder / name)
    if right:
        load(small, address, name, tmp_path / "cache")
    else:
        with pytest.raises(ValueError, match=rf"removed.*SHA-256 begins with {digest}, but 0123abcd is expected"):
            load(small, address, name, tmp_path / "cache")
    assert (tmp_path / "cache" / name).exists() == right


def test_a_date_in_the_files_name_is_no_hash(small: Build, served: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, folder, _ = served
    publish(small(NAME), folder / "weights-20220731.pth")
    load(small, address, "weights-20220731.pth", tmp_path / "cache")


def test_only_damage_makes_a_download_disappear(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, folder, _ = served
    torch.save(torch.zeros(3), folder / "weights.pth")  # whole, but no dictionary
    cache = tmp_path / "an empty cache, truncated"
    with pytest.raises(ValueError, match="holds a Tensor"):
        load(small, address, "weights.pth", cache)
    assert (cache / "weights.pth").exists()


def test_a_hash_in_the_cards_is_checked(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder, _ = served
    publish(small(NAME), folder / "weights.pth")
    cards = tmp_path / "cards.yml"
    cards.write_text(f"van: {{models: {{a.b: {{url: '{address}/weights.pth', sha256: {'f' * 64}}}}}}}")
    monkeypatch.setattr(_download, "_CARDS", cards)
    with pytest.raises(ValueError, match=f"but {'f' * 64} is expected"):
        load(small, address, "weights.pth", tmp_path / "cache")


def test_a_file_that_would_run_code_is_refused_kept_and_its_converter_named(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, folder, _ = served
    publish(small(NAME), folder / "weights.pth", args=argparse.Namespace(lr=1))
    with pytest.raises(ValueError, match=r"argparse\.Namespace.*convert_checkpoint"):
        load(small, address, "weights.pth", tmp_path / "cache")
    assert (tmp_path / "cache" / "weights.pth").exists()


def test_a_missing_file_and_a_missing_server_are_said_in_a_sentence(
    small: Build, served: tuple[str, Path, list[str]], tmp_path: Path
) -> None:
    address, _, _ = served
    with pytest.raises(ValueError, match=r"weights of van_b0 cannot be had: .*nowhere\.pth: .*not here"):
        load(small, address, "nowhere.pth", tmp_path / "cache")
    with pytest.raises(ValueError, match=r"weights of van_b0 cannot be had: http://127\.0\.0\.1:1/.*: .*refused"):
        load(small, "http://127.0.0.1:1", "weights.pth", tmp_path / "cache")


def test_a_file_that_is_not_there_is_said_in_a_sentence(small: Build) -> None:
    with pytest.raises(ValueError, match=r"checkpoint nowhere\.pth does not exist"):
        small(NAME, pretrained=True, pretrained_cfg_overlay={"file": "nowhere.pth"})


def test_weights_without_a_direct_link_are_said_to_be_at_the_authors() -> None:
    sentence = (
        r"pretrained_cfg of van_b4\.in1k has no link to weights; .* page is https://.*overlay=dict\(file='FILE'\) takes"
    )
    with pytest.raises(ValueError, match=sentence):
        timm.create_model("van_b4.in1k", pretrained=True)


def test_without_a_network_the_hubs_weights_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"weights of shvit_s1_fused cannot be had from timm/shvit_s1\.in1k on"
    ) as caught:
        timm.create_model("shvit_s1_fused", pretrained=True, cache_dir=tmp_path)
    assert len(str(caught.value).splitlines()) == 1
