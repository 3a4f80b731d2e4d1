# COCO 2017 as DINO is trained: the images of DETR, those without a box too; what is cropped may be wider before.
_base_ = "coco.py"
train_dataloader = dict(
    dataset=dict(
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="RandomFlip", prob=0.5),
            dict(
                type="RandomChoice",
                transforms=[
                    [
                        dict(
                            type="RandomChoiceResize",
                            scales=[(side, 1333) for side in range(480, 801, 32)],
                            keep_ratio=True,
                        )
                    ],
                    [
                        dict(
                            type="RandomChoiceResize",
                            scales=[(side, 4200) for side in (400, 500, 600)],
                            keep_ratio=True,
                        ),
                        dict(
                            type="RandomCrop",
                            crop_type="absolute_range",
                            crop_size=(384, 600),
                            allow_negative_crop=True,
                        ),
                        dict(
                            type="RandomChoiceResize",
                            scales=[(side, 1333) for side in range(480, 801, 32)],
                            keep_ratio=True,
                        ),
                    ],
                ],
            ),
            dict(type="PackDetInputs"),
        ],
    )
)
