# DINO on 4 scales and any timm backbone, 12 epochs of COCO: --backbone NAME; ResNet-50 without it (47.8 M parameters).
# No score published for these weights; mmdet's recipe, BatchNorm of the backbone at rest.
#   vertebra train coco/dino-4scale_mapper_12e
_base_ = [
    "../_base_/models/dino-4scale.py",
    "../_base_/datasets/coco_dino.py",
    "../_base_/schedules/dino_12e.py",
    "../_base_/runtime/detection.py",
]
model = dict(backbone=dict(norm_eval=True))
