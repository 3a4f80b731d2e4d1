# TransNeXt-Small, DINO on 5 scales, 12 epochs of COCO: 56.6 box AP as published (arXiv 2311.17132), 69.6 M parameters
# (69.8 M as built here).
#   vertebra train coco/transnext/dino-5scale_transnext_small_mapper_12e
_base_ = ["dino-5scale_transnext_tiny_mapper_12e.py"]
model = dict(backbone=dict(model_name="transnext_small", drop_path_rate=0.5))
