# LITv2-M, Semantic FPN, 80 000 iterations of ADE20K: 45.7 mIoU as published (arXiv 2205.13213), 52 M parameters,
# 63 GFLOPs (512 x 512).
#   vertebra train ade20k/litv2/semantic-fpn_litv2_medium_80k
_base_ = ["semantic-fpn_litv2_small_80k.py"]
model = dict(backbone=dict(model_name="litv2_medium"))
