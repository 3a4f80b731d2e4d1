# BiFormer-S, Mask R-CNN, 12 epochs of COCO: 47.8 box AP, 43.2 mask AP as published (arXiv 2303.08810) (48.1 and 43.6 at
# the code's release), 45.2 M parameters as built here.
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train coco/biformer/mask-rcnn_biformer_small_fpn_1x
_base_ = [
    "../../_base_/models/mask-rcnn.py",
    "../../_base_/datasets/coco_masks.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(
        model_name="biformer_small",
        n_win=16,
        drop_path_rate=0.2,
        norm_eval=True,
        out_norms=dict(type="LN", eps=1e-6),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# the authors name the norms between stages by number: their rule for 'norm' passes them by; their fp16 names no loss
# scale, and mmcv 1 takes 512 then
optim_wrapper = dict(
    type="AmpOptimWrapper",
    dtype="float16",
    loss_scale=512.0,
    paramwise_cfg=dict(custom_keys={"norm": dict(decay_mult=0.0), "downsample": dict(decay_mult=1.0)}),
)
