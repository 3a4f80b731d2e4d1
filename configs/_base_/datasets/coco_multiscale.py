# COCO 2017 boxes with the images of DETR: the short side of 480 to 800, half of the time after a crop.
_base_ = "coco.py"
train_dataloader = dict(
    dataset=dict(
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
                            scales=[(side, 1333) for side in (400, 500, 600)],
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
        ]
    )
)
