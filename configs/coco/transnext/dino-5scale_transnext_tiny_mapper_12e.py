# TransNeXt-Tiny, DINO on 5 scales, 12 epochs of COCO: 55.7 box AP as published (arXiv 2311.17132), 48.1 M parameters.
#   vertebra train coco/transnext/dino-5scale_transnext_tiny_mapper_12e
_base_ = [
    "../../_base_/models/dino-5scale.py",
    "../../_base_/datasets/coco_dino.py",
    "../../_base_/schedules/dino_12e_transnext.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="transnext_tiny", drop_path_rate=0.3, position_bias="interpolation", bias_size=800),
    neck=dict(in_channels=[72, 144, 288, 576]),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(accumulative_counts=2)
