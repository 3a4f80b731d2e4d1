# The scenes of `vertebra make_dataset digits data/digits` as masks: the canvas and ten digits; 0 is ignored.
_data = dict(
    type="BaseSegDataset",
    data_root="data/digits/ade20k",
    metainfo=dict(
        classes=("canvas", *"0123456789"),
        palette=[
            [40, 40, 60],
            [230, 60, 60],
            [250, 140, 40],
            [250, 220, 60],
            [170, 230, 70],
            [60, 180, 80],
            [70, 220, 220],
            [60, 120, 240],
            [150, 90, 230],
            [240, 90, 200],
            [230, 230, 230],
        ],
    ),
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **_data,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="PermuteChannels"),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **_data,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
