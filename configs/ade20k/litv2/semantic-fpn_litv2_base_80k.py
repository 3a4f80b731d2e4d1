# LITv2-B, Semantic FPN, 80 000 iterations of ADE20K: 47.2 mIoU as published (arXiv 2205.13213), 90 M parameters,
# 93 GFLOPs (512 x 512).
#   vertebra train ade20k/litv2/semantic-fpn_litv2_base_80k
_base_ = ["semantic-fpn_litv2_small_80k.py"]
model = dict(backbone=dict(model_name="litv2_base", drop_path_rate=0.3), neck=dict(in_channels=[128, 256, 512, 1024]))
