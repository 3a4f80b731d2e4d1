# CSWin-T, RetinaNet, 12 epochs of COCO: no score published (arXiv 2107.00652); Swin's recipe, drop path as on ImageNet,
# 32.0 M parameters as built here.
#   vertebra train coco/cswin/retinanet_cswin_tiny_fpn_1x
_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="cswin_tiny", drop_path_rate=0.2, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[128, 256, 512]),
)
# the authors name the stem's norm by number: their rule for 'norm' passes it by
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "stages.0.downsample.norm": dict(decay_mult=1.0)})
)
