# MaxViT-T, Cascade Mask R-CNN, COCO at 896 x 896: 52.1 box AP, 44.6 mask AP in the paper (arXiv 2204.01697; not
# verified), 69 M parameters (88.1 M as built here), 475 GFLOPs.
# Not verified, since the authors' detection code is not public: the recipe; Swin's 36 epochs, drop path as on
# ImageNet.
#   vertebra train coco/maxvit/cascade-mask-rcnn_maxvit_tiny_tf_224_fpn_3x
_base_ = [
    "../../_base_/models/cascade-mask-rcnn.py",
    "../../_base_/datasets/coco_masks_896.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    data_preprocessor=dict(pad_size_divisor=224),  # windows of 7 fill such images
    backbone=dict(model_name="maxvit_tiny_tf_224_fused", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
exempt = ("norm", "relative_position_bias_table")
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.0) for key in exempt}))
del exempt
