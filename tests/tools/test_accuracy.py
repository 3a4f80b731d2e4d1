"""Rows of results/accuracy.csv: a score each, with the options that changed it and no folder of one machine."""

from vertebra.tools._accuracy import rows_of

METRICS = {"top1": 0.5, "top5": 0.75, "images": 12, "unreadable": 0, "views": 3, "seconds": 1.5, "model": "van_b0"}


def test_every_score_becomes_a_row_with_names_in_the_place_of_paths() -> None:
    options = "--tta model.depths=(1,1,1,1)"
    rows = rows_of(METRICS, "van_b0", "here/mine.py", "there/epoch_2.pth", "far/away/digits", options, "cpu")
    assert [(row.metric, row.value, row.unit) for row in rows] == [("top1", 0.5, "share"), ("top5", 0.75, "share")]
    for row in rows:
        assert (row.config, row.weights, row.data, row.images) == ("mine", "epoch_2.pth", "digits", 12)
        assert row.options == options


def test_a_config_of_ours_keeps_its_whole_name() -> None:
    row, _ = rows_of(METRICS, "van_b0", "coco/van/retinanet_van_b0_fpn_1x", "pretrained", None, "", "cpu")
    assert (row.config, row.weights, row.data) == ("coco/van/retinanet_van_b0_fpn_1x", "pretrained", "")
