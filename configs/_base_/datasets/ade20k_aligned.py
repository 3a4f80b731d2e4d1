# ADE20K, tested on images that are stretched until both sides are multiples of 32.
_base_ = "ade20k.py"
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(2048, 512), keep_ratio=True),
            dict(type="ResizeToMultiple", size_divisor=32),
            dict(type="LoadAnnotations"),
            dict(type="PackSegInputs"),
        ]
    )
)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(2048 * part // 4, 512 * part // 4), keep_ratio=True)
                for part in (2, 3, 4, 5, 6, 7)
            ],
            [dict(type="ResizeToMultiple", size_divisor=32)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
