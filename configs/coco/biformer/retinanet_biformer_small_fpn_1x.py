# BiFormer-S, RetinaNet, 12 epochs of COCO: 45.9 box AP as published (arXiv 2303.08810) (47.3 at the code's release),
# 35.3 M parameters as built here.
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train coco/biformer/retinanet_biformer_small_fpn_1x
_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco.py",
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
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(type="AmpOptimWrapper", dtype="float16", loss_scale=512.0, optimizer=dict(weight_decay=1e-4))
