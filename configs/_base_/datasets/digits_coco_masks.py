# The scenes of `vertebra make_dataset digits data/digits`, with boxes and masks.
_base_ = "digits_coco.py"
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="PermuteChannels"),
            dict(type="PackDetInputs"),
        ]
    )
)
val_evaluator = dict(metric=["bbox", "segm"])
test_evaluator = val_evaluator
