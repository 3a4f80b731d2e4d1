# BiFormer-B, RetinaNet, 12 epochs of COCO: 47.1 box AP as published (arXiv 2303.08810), 67.0 M parameters as built
# here.
# No public link leads straight to the weights it starts from: model.backbone.pretrained=FILE names the authors' file.
#   vertebra train coco/biformer/retinanet_biformer_base_fpn_1x
_base_ = ["retinanet_biformer_small_fpn_1x.py"]
model = dict(backbone=dict(model_name="biformer_base", drop_path_rate=0.3), neck=dict(in_channels=[192, 384, 768]))
