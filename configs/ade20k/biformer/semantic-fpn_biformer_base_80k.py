# BiFormer-B, Semantic FPN, 80 000 iterations of ADE20K: 49.9 mIoU as published (arXiv 2303.08810), 60.4 M parameters as
# built here.
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train ade20k/biformer/semantic-fpn_biformer_base_80k
_base_ = ["semantic-fpn_biformer_small_80k.py"]
model = dict(backbone=dict(model_name="biformer_base", drop_path_rate=0.3), neck=dict(in_channels=[96, 192, 384, 768]))
