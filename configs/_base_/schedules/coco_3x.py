# 36 epochs of COCO, else as in coco_1x.py; a tenth of the rate from epochs 27 and 33 on.
_base_ = "coco_1x.py"
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, end=500),
    dict(type="MultiStepLR", milestones=[27, 33], gamma=0.1),
]
