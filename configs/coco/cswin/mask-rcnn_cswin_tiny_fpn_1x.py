# CSWin-T, Mask R-CNN, 12 epochs of COCO: 46.7 box AP in the paper's table (arXiv 2107.00652; not verified), 42.0 M
# parameters as built here.
# Not verified, since there is no detection code of the authors: the recipe; Swin's recipe, drop path as on ImageNet.
#   vertebra train coco/cswin/mask-rcnn_cswin_tiny_fpn_1x
_base_ = [
    "../../_base_/models/mask-rcnn.py",
    "../../_base_/datasets/coco_masks.py",
    "../../_base_/schedules/coco_1x.py",
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
