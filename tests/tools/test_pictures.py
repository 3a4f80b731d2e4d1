"""Pictures are read in one way, keep their files safe, and are drawn at a size at which something can be read."""

from pathlib import Path

import pytest
from PIL import Image
from vertebra.backbones._errors import UserError
from vertebra.tools._pictures import enlarged, fitted, read_picture, refuse_overwriting, write_picture


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((40, 30), (400, 300)),
        ((384, 9), (384, 9)),
        ((1600, 1600), (1600, 1600)),
        ((6400, 3200), (1600, 800)),
        ((20, 1000), (20, 1000)),  # so much enlarged that it is 384 wide, it would be 20,000 high
        ((1, 10000), (1, 1600)),
    ],
)
def test_small_pictures_grow_and_large_ones_shrink(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    assert fitted(Image.new("RGB", size), 384).size == drawn


def test_the_number_of_times_is_that_of_both_sides() -> None:
    picture, times = enlarged(Image.new("RGB", (100, 400)), 512)
    assert (picture.size, times) == ((400, 1600), 4)


def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(Image.new("RGB", (2, 2), "red"), tmp_path / "sub/a.png")
    before = (tmp_path / "sub/a.png").read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_picture(Image.new("RGB", (2, 2), "blue"), tmp_path / "sub/a.png")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]
    assert (tmp_path / "sub/a.png").read_bytes() == before


def test_a_link_to_an_image_is_that_image(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"would overwrite .*a\.png"):
        refuse_overwriting([tmp_path / "link/a.png"], ["b.png", "a.png"], tmp_path)
    refuse_overwriting([tmp_path / "a.png"], ["b.png"], tmp_path)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as an image: is a directory"):
        read_picture(tmp_path)
