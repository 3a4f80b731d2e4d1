"""Who decides which implementation runs, and that what nobody knows is refused."""

import pytest
import torch
from torch.autograd import forward_ad
from vertebra.kernels import dispatch


@pytest.mark.parametrize(("value", "expected"), [("", False), ("auto", False), ("eager", False), ("reference", True)])
def test_the_environment_decides_where_no_argument_does(
    value: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", value)
    assert dispatch.is_reference(None) is expected
    assert dispatch.is_reference("reference") is True
    assert dispatch.is_reference("eager") is False


def test_an_unknown_value_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", "referense")
    with pytest.raises(ValueError, match=r"VERTEBRA_KERNELS is 'referense'; it takes auto, reference, eager"):
        dispatch.is_reference(None)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend is 'fast'; it takes None, 'reference' or 'eager'"):
        dispatch.is_reference("fast")


def test_transformations_get_the_reference() -> None:
    seen = []
    torch.func.vmap(lambda x: seen.append(dispatch.is_reference(None)) or x)(torch.zeros(2))
    with forward_ad.dual_level():
        seen.append(dispatch.is_reference(None))
    assert seen == [True, True]
    assert not dispatch.is_reference(None)
