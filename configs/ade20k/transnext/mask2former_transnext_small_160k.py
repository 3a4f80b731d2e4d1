# TransNeXt-Small, Mask2Former, 160 000 iterations of ADE20K: 54.1 mIoU as published (arXiv 2311.17132),
# 69.0 M parameters.
#   vertebra train ade20k/transnext/mask2former_transnext_small_160k
_base_ = ["mask2former_transnext_tiny_160k.py"]
model = dict(backbone=dict(model_name="transnext_small", drop_path_rate=0.5))
