# L2ViT-Small, Mask R-CNN, 36 epochs of COCO in many sizes (arXiv 2501.16182): the score is in the paper's table, which
# was not read; the authors' recipe, 69.7 M parameters as built here.
#   vertebra train coco/l2vit/mask-rcnn_l2vit_small_fpn_3x
_base_ = ["mask-rcnn_l2vit_tiny_fpn_3x.py"]
model = dict(backbone=dict(model_name="l2vit_small"))
