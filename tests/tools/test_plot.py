"""`vertebra plot`: what it reads from the logs of whole, killed and resumed runs, and the pictures it writes."""

import json
import math
from pathlib import Path

import pytest
from vertebra.backbones._errors import UserError
from vertebra.tools import plot
from vertebra.tools._common import run_tool
from vertebra.tools.plot import build_parser, draw, labels, main, read_run

STEPS = 25  # in an epoch


def train_row(step: int, loss: float = 1.0) -> str:
    return json.dumps(
        {"lr": 1e-3, "loss": loss, "time": 0.1, "epoch": math.ceil(step / STEPS), "iter": step, "step": step}
    )


def step_row(step: int) -> str:
    """Of a run that counts steps."""
    return json.dumps(json.loads(train_row(step)) | {"by_step": 1})


def val_row(epoch: int, top1: float = 0.5) -> str:
    return json.dumps({"top1": top1, "top5": 0.9, "images": 360, "time": 0.1, "step": epoch})


def write_log(work_dir: Path, rows: list[str], start: str = "20260101_000000", end: str = "\n") -> Path:
    log = work_dir / start / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text("\n".join(rows) + end, encoding="utf-8")
    return work_dir


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """Two epochs, logged every 10 steps and evaluated after each."""
    rows = [
        train_row(10, 2.0),
        train_row(20, 1.5),
        val_row(1, 0.6),
        train_row(35, 1.2),
        train_row(45, 1.0),
        val_row(2, 0.8),
    ]
    return write_log(tmp_path / "van_b0_digits", rows)


def test_rows_of_training_and_validation_are_told_apart(work_dir: Path) -> None:
    run = read_run(work_dir)
    assert [row["step"] for row in run.train] == [10, 20, 35, 45]
    assert [row["top1"] for row in run.val] == [0.6, 0.8]


def test_steps_and_evaluations_stand_on_one_axis_of_epochs(work_dir: Path) -> None:
    run = read_run(work_dir)
    assert run.curve("loss", epochs=True)[0] == pytest.approx([0.4, 0.8, 1.4, 1.8])
    assert run.curve("top1", epochs=True, validation=True)[0] == [1, 2]


def test_evaluations_of_a_run_by_epochs_can_be_placed_at_steps(work_dir: Path) -> None:
    assert read_run(work_dir).curve("top1", epochs=False, validation=True)[0] == pytest.approx([STEPS, 2 * STEPS])


def test_evaluations_of_a_run_by_iterations_stand_at_their_step(tmp_path: Path) -> None:
    train = [step_row(50), step_row(100)]
    assert not read_run(write_log(tmp_path / "without evaluation", train)).by_epoch
    run = read_run(write_log(tmp_path / "seg", [*train, json.dumps({"ade/mIoU": 30.0, "step": 100})]))
    assert (run.by_epoch, run.curve("ade/mIoU", epochs=False, validation=True)) == (False, ([100], [0.3]))


def test_older_logs_of_a_run_by_iterations_have_no_epochs(tmp_path: Path) -> None:
    run = read_run(write_log(tmp_path / "seg", [json.dumps({"lr": 0.1, "loss": 1.0, "step": 100})]))
    assert (run.by_epoch, run.curve("loss", epochs=False)) == (False, ([100], [1.0]))


def test_resumed_run_by_iterations_keeps_the_evaluations_before_it(tmp_path: Path) -> None:
    vals = [json.dumps({"mIoU": value, "step": step}) for value, step in ((10.0, 50), (90.0, 100), (20.0, 100))]
    write_log(tmp_path / "run", [step_row(50), vals[0], step_row(100), vals[1], step_row(150)], "20260101_000000")
    write_log(tmp_path / "run", [step_row(80), step_row(100), vals[2]], "20260102_000000")
    run = read_run(tmp_path / "run")
    assert [row["step"] for row in run.train] == [50, 80, 100]
    assert [(row["step"], row["mIoU"]) for row in run.val] == [(50, 0.1), (100, 0.2)]


def test_metrics_of_all_tasks_are_drawn_as_the_fractions_of_the_metrics_file(tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    from vertebra.engine.metrics import flat_metrics

    logged = {"coco/bbox_mAP": 0.415, "coco/segm_mAP": 0.302, "mIoU": 41.5, "mAcc": 60.0, "aAcc": 80.0}
    (row,) = read_run(write_log(tmp_path / "run", [train_row(10), json.dumps({**logged, "step": 1})])).val
    assert [row[name] for name in logged] == pytest.approx(list(flat_metrics(logged).values()))


@pytest.mark.parametrize(("metric", "title"), [("mIoU", "mean IoU (%)"), ("coco/bbox_mAP", "box AP (%)")])
def test_scores_of_all_tasks_have_one_scale_from_the_first_evaluation_on(
    tmp_path: Path, metric: str, title: str
) -> None:
    scale = 100 if metric == "mIoU" else 1
    values = [json.dumps({metric: scale * share, "step": step}) for step, share in ((100, 0.005), (200, 0.3))]
    for count, shown in ((1, [0.5]), (2, [0.5, 30.0])):
        rows = [train_row(100), values[0], train_row(200), *values[1:count]]
        figure = plot._figure([read_run(write_log(tmp_path / str(count), rows))])
        axes = figure.axes[1]
        assert axes.get_ylabel() == title
        assert list(axes.lines[0].get_ydata()) == pytest.approx(shown)


def test_half_written_last_line_of_a_killed_run_is_passed_over(tmp_path: Path) -> None:
    run = read_run(write_log(tmp_path / "killed", [train_row(10), train_row(20), train_row(30)[:25]], end=""))
    assert [row["step"] for row in run.train] == [10, 20]


def test_resumed_run_keeps_only_what_led_to_its_newest_state(tmp_path: Path) -> None:
    first = [train_row(20, 9.0), val_row(1, 0.1), train_row(40, 9.0), val_row(2, 0.2), train_row(60, 9.0)]
    write_log(tmp_path / "run", first, "20260101_000000")
    write_log(tmp_path / "run", [train_row(30, 1.0), train_row(40, 1.0)], "20260102_000000")  # resumed in epoch 2
    run = read_run(tmp_path / "run")
    assert [(row["step"], row["loss"]) for row in run.train] == [(20, 9.0), (30, 1.0), (40, 1.0)]
    assert [row["step"] for row in run.val] == [1]


def test_resume_behind_the_last_logged_step_drops_nothing(tmp_path: Path) -> None:
    write_log(tmp_path / "run", [train_row(20), val_row(1)], "20260101_000000")
    write_log(tmp_path / "run", [train_row(30), val_row(2)], "20260102_000000")
    run = read_run(tmp_path / "run")
    assert ([row["step"] for row in run.train], [row["step"] for row in run.val]) == ([20, 30], [1, 2])


def test_learning_rate_before_layer_decay_is_drawn_where_it_is_logged(tmp_path: Path) -> None:
    row = json.dumps({"base_lr": 1e-3, "lr": 1e-6, "loss": 1.0, "epoch": 1, "step": 10})
    assert read_run(write_log(tmp_path / "run", [row])).curve("lr", epochs=False)[1] == [1e-3]


def test_counts_and_times_of_an_evaluation_are_not_taken_for_metrics(tmp_path: Path) -> None:
    val = json.dumps({"recall": 0.5, "images": 360, "unreadable": 0, "time": 1.0, "data_time": 1.0, "step": 1})
    assert read_run(write_log(tmp_path / "run", [train_row(10), val])).metrics() == ["recall"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [read_run(write_log(tmp_path / name / "van", [train_row(10)])) for name in ("a", "b")]
    assert labels(runs) == ["a/van", "b/van"]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_suffix_decides_the_format(work_dir: Path, tmp_path: Path, suffix: str, start: bytes) -> None:
    out = tmp_path / "new" / f"curve{suffix}"
    assert main([str(work_dir), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(start)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_picture_names_its_runs_axes_and_units(work_dir: Path, tmp_path: Path) -> None:
    other = write_log(tmp_path / "van_b1_digits", [train_row(10), train_row(35), val_row(1, 0.975)])
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):  # text as text
        draw([read_run(work_dir), read_run(other)], tmp_path / "both.svg")
    picture = (tmp_path / "both.svg").read_text(encoding="utf-8")
    best = "best top-1 accuracy"
    for text in (
        "training loss",
        "top-1 accuracy (%)",
        "learning rate",
        "epoch",
        f"van_b1_digits: {best} 97.50 % at epoch 1",
    ):
        assert text in picture


def test_the_gradients_norm_has_a_panel_where_it_is_logged(work_dir: Path, tmp_path: Path) -> None:
    """Beside a run of another length that did not log it, and in spite of a step that overflowed."""
    rows = [json.dumps(json.loads(train_row(step)) | {"grad_norm": norm}) for step, norm in ((10, 2.0), (20, math.inf))]
    longer = read_run(write_log(tmp_path / "longer", [*rows, train_row(90), val_row(3, 0.7)]))
    figure = plot._figure([read_run(work_dir), longer])
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "training loss",
        "top-1 accuracy (%)",
        "gradient norm",
        "learning rate",
    ]
    assert [list(line.get_ydata()) for line in figure.axes[2].lines] == [[], [2.0, math.inf]]
    draw([read_run(work_dir), longer], tmp_path / "both.png")
    assert len(plot._figure([read_run(work_dir)]).axes) == 3


def test_run_of_one_line_with_a_loss_of_nan_can_be_drawn(tmp_path: Path) -> None:
    draw([read_run(write_log(tmp_path / "run", [train_row(10, math.nan)]))], tmp_path / "nan.png")
    assert (tmp_path / "nan.png").stat().st_size > 0


def test_older_picture_survives_a_drawing_that_fails(
    work_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "curve.png"
    out.write_bytes(b"older")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        draw([read_run(work_dir)], out)
    assert out.read_bytes() == b"older"


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        read_run(tmp_path / "nowhere")


def test_folder_without_a_log_says_what_a_work_dir_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no training log: .*scalars\.json"):
        read_run(tmp_path)


def test_log_without_a_step_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no training step yet"):
        read_run(write_log(tmp_path / "run", [val_row(1)]))


def test_unknown_suffix_ends_in_one_sentence(
    work_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(main, [str(work_dir), "--out", str(tmp_path / "curve.gif")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'.gif'" in error
    assert ".png, .svg, .pdf" in error


def test_help_ends_with_an_example() -> None:
    assert build_parser().format_help().rstrip().splitlines()[-2:] == [
        "example:",
        "  vertebra plot work_dirs/van_b0 work_dirs/van_b1 --out curves.png",
    ]
