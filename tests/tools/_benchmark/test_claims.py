"""benchmark claims: two sides that take turns, what differs between them, and what a row says."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import vertebra
from torch import nn
from vertebra.tools import benchmark
from vertebra.tools._benchmark import claims as module
from vertebra.tools._benchmark.claims import Row, Trial, claims, measure, table, trials
from vertebra.tools._common import run_tool

STORED = Path(vertebra.__file__).parent / "results" / "claims.csv"


class Clock:
    """A clock that only steps move."""

    def __init__(self) -> None:
        self.now, self.log = 0.0, ""

    def step(self, side: str, *seconds: float) -> Any:
        left = list(seconds)

        def run() -> None:
            self.log += side
            self.now += left.pop(0)

        return run


def trial(ours: Any, other: Any) -> Trial:
    return Trial("a", "b", "forward", 1.4, lambda batch: (ours, other))


def test_gain_is_the_median_of_rounds_in_which_both_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(module.time, "process_time", lambda: clock.now)
    row = measure(trial(clock.step("a", 9, 1, 2, 2), clock.step("b", 1, 1, 6, 4)), rounds=3)
    assert clock.log == "ab" * 4
    assert (row.lowest, row.value, row.highest) == (1, 2, 3)
    assert (row.ours_ms, row.other_ms) == (2000, 4000)


def test_row_says_conditions_and_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    row = measure(trial(lambda: seen.append(torch.get_num_threads()), lambda: None), batch=3, rounds=1, threads=2)
    assert seen == [2, 2]
    assert torch.get_num_threads() == before
    assert (row.claimed, row.unit, row.batch, row.threads, row.device) == (1.4, "x", 3, 2, "cpu")
    assert row.vertebra == vertebra.__version__


def test_reference_side_alone_runs_with_the_reference_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERTEBRA_KERNELS", raising=False)
    seen: list[str | None] = []

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.pretrained_cfg = {"input_size": (3, 32, 32)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(os.environ.get("VERTEBRA_KERNELS"))
            return x * self.weight

    monkeypatch.setattr(module.timm, "create_model", lambda name: Model())
    for made in (module._forward("m", None, None), module._training("m", None, None), module._forward("m", "o", 2)):
        for step in made.steps(1):
            step()
    assert seen == [None, "reference", None, "reference", None, None]


@pytest.mark.parametrize("layer", [module.SpatialReduction(64, 2, 2), module.Windows(64, 2, 7)])
def test_layers_to_compare_with_keep_the_shape_of_their_tokens(layer: nn.Module) -> None:
    x = torch.randn(2, 14, 14, 64)
    assert layer(x).shape == x.shape


def test_spatial_reduction_is_attention_to_a_coarser_map() -> None:
    layer, x = module.SpatialReduction(8, 2, 2), torch.randn(1, 4, 4, 8)
    coarse = layer.norm(layer.reduce(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)).reshape(1, 4, 8)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.in_proj_weight.data = torch.cat([layer.q.weight, layer.kv.weight]).detach()
    attention.in_proj_bias.data = torch.cat([layer.q.bias, layer.kv.bias]).detach()
    attention.out_proj.load_state_dict(layer.proj.state_dict())
    expected = attention(x.reshape(1, 16, 8), coarse, coarse, need_weights=False)[0]
    torch.testing.assert_close(layer(x).reshape(1, 16, 8), expected)


def test_claims_of_the_papers_are_among_the_trials() -> None:
    claimed = {(t.ours, t.other): t.claimed for name in ("hilo", "shvit") for t in trials(name) if t.claimed}
    assert claimed == {
        ("HiLo", "SpatialReduction"): 1.4,
        ("HiLo", "Windows"): 1.6,
        ("shvit_s4_fused", "mobilevitv2_100"): 8.1,
    }


def test_fused_models_are_compared_with_timms_own_too() -> None:
    assert [(t.other, t.what) for t in trials("davit")] == [
        ("davit_tiny", "forward"),
        ("davit_tiny", "training"),
        ("reference operators", "forward"),
        ("reference operators", "training"),
    ]


def test_layers_of_the_papers_claims_run() -> None:
    for made in trials("hilo"):
        assert measure(made, batch=1, rounds=1).value > 0


def test_command_writes_the_rows_of_a_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "trials", lambda name: [trial(lambda: sum(range(9999)), lambda: sum(range(9999)))])
    path = tmp_path / "claims.csv"
    assert benchmark.main(["claims", "cswin", "--repeats", "2", "--batch", "1", "--csv", str(path)]) == 0
    with path.open(newline="") as file:
        (found,) = csv.DictReader(file)
    assert (found["ours"], found["other"], found["claimed"], found["rounds"]) == ("a", "b", "1.4", "2")
    assert "1.4 x" in capsys.readouterr().out


def test_unknown_claim_is_one_sentence_with_those_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool(benchmark.main, ["claims", "hlio"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert "Did you mean hilo" in message


def test_table_leaves_what_no_paper_claims_blank() -> None:
    common = dict(unit="x", lowest=1.0, highest=2.0, ours_ms=3.0, other_ms=4.0, rounds=1, batch=1, precision="float32")
    where = dict(device="cpu", device_name="x", threads=1, torch="", timm="", vertebra="", commit="", date="")
    row = Row(ours="m", other="n", what="forward", claimed=None, value=1.5, **common, **where)
    *_, line = table([row]).splitlines()
    assert line.split() == ["m", "n", "forward", "1.50", "x", "1.00", "x", "2.00", "x", "3.0", "4.0"]


def test_every_claim_was_tried_and_what_was_found_is_stored() -> None:
    with STORED.open(newline="", encoding="utf-8") as file:
        found = {(row["ours"], row["other"], row["what"]) for row in csv.DictReader(file)}
    assert found >= {(t.ours, t.other, t.what) for name in claims() for t in trials(name)}
