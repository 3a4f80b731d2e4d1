# COCO 2017 with instance masks, all images inside 896 x 896 (MaxViT's windows of 7 fill it without padding).
_base_ = "coco_masks.py"
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="RandomResize", scale=(896, 896), ratio_range=(0.5, 1.5), keep_ratio=True),
            dict(type="RandomCrop", crop_type="absolute", crop_size=(896, 896), allow_negative_crop=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ]
    )
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(896, 896), keep_ratio=True),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
        ]
    )
)
test_dataloader = val_dataloader
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            # a size between these would be padded to the next: the model pads to multiples of 224
            [dict(type="Resize", scale=(side, side), keep_ratio=True) for side in (672, 896, 1120)],
            [dict(type="RandomFlip", prob=1.0), dict(type="RandomFlip", prob=0.0)],
            [dict(type="LoadAnnotations", with_bbox=True)],
            [
                dict(
                    type="PackDetInputs",
                    meta_keys=(
                        *("img_id", "img_path", "ori_shape", "img_shape"),
                        *("scale_factor", "flip", "flip_direction"),
                    ),
                )
            ],
        ],
    ),
]
