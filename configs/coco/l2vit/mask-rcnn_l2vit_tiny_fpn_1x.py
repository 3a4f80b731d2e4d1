# L2ViT-Tiny, Mask R-CNN, 12 epochs of COCO in many sizes (arXiv 2501.16182): the score is in the paper's table, which
# was not read; the authors' recipe, 48.1 M parameters as built here.
#   vertebra train coco/l2vit/mask-rcnn_l2vit_tiny_fpn_1x
_base_ = [
    "../../_base_/models/mask-rcnn.py",
    "../../_base_/datasets/coco_masks_multiscale.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/runtime/detection.py",
]
model = dict(
    backbone=dict(model_name="l2vit_tiny", drop_path_rate=0.1, out_norms=dict(type="LN", eps=1e-5)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
