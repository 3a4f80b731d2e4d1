# L2ViT-Base, RetinaNet, 36 epochs of COCO in many sizes (arXiv 2501.16182): the score is in the paper's table, which
# was not read; the authors' recipe, 99.2 M parameters as built here.
#   vertebra train coco/l2vit/retinanet_l2vit_base_fpn_3x
_base_ = ["retinanet_l2vit_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="l2vit_base", drop_path_rate=0.3), neck=dict(in_channels=[256, 512, 1024]))
