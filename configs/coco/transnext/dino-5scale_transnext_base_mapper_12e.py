# TransNeXt-Base, DINO on 5 scales, 12 epochs of COCO: 57.1 box AP as published (arXiv 2311.17132), 110 M parameters.
#   vertebra train coco/transnext/dino-5scale_transnext_base_mapper_12e
_base_ = ["dino-5scale_transnext_tiny_mapper_12e.py"]
model = dict(backbone=dict(model_name="transnext_base", drop_path_rate=0.6), neck=dict(in_channels=[96, 192, 384, 768]))
