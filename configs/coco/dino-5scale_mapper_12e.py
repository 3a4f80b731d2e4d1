# DINO on 5 scales and any timm backbone, 12 epochs of COCO: --backbone NAME; ResNet-50 without it (48.2 M parameters).
# No score published for these weights; mmdet's recipe, BatchNorm of the backbone at rest.
#   vertebra train coco/dino-5scale_mapper_12e
_base_ = [
    "../_base_/models/dino-5scale.py",
    "../_base_/datasets/coco_dino.py",
    "../_base_/schedules/dino_12e.py",
    "../_base_/runtime/detection.py",
]
model = dict(backbone=dict(norm_eval=True))
