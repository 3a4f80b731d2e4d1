# ADE20K as Mask2Former is trained: crops of 512 x 512 from images whose short side is 256 to 1024.
_base_ = "ade20k.py"
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(
                type="RandomChoiceResize",
                scales=[512 * part // 10 for part in range(5, 21)],
                resize_type="ResizeShortestEdge",
                max_size=2048,
            ),
            dict(type="RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackSegInputs"),
        ]
    )
)
