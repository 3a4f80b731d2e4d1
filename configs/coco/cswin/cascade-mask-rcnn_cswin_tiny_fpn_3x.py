# CSWin-T, Cascade Mask R-CNN, 36 epochs of COCO in many sizes: 52.5 box AP, 45.3 mask AP as published
# (arXiv 2107.00652), 80 M parameters, 757 GFLOPs.
# Not verified, since there is no detection code of the authors: the recipe; Swin's recipe, drop path as on ImageNet.
#   vertebra train coco/cswin/cascade-mask-rcnn_cswin_tiny_fpn_3x
_base_ = [
    "../../_base_/models/cascade-mask-rcnn.py",
    "../../_base_/datasets/coco_masks_multiscale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="cswin_tiny", drop_path_rate=0.2, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# the authors name the stem's norm by number: their rule for 'norm' passes it by
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "stages.0.downsample.norm": dict(decay_mult=1.0)})
)
