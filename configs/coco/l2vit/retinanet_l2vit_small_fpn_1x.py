# L2ViT-Small, RetinaNet, 12 epochs of COCO in many sizes (arXiv 2501.16182): the score is in the paper's table, which
# was not read; the authors' recipe, 60.4 M parameters as built here.
#   vertebra train coco/l2vit/retinanet_l2vit_small_fpn_1x
_base_ = ["retinanet_l2vit_tiny_fpn_1x.py"]
model = dict(backbone=dict(model_name="l2vit_small"))
