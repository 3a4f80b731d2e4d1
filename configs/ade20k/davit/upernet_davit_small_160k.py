# DaViT-Small, UPerNet, 160 000 iterations of ADE20K: 48.8 mIoU as published (arXiv 2204.03645), 81 M parameters,
# 1030 GFLOPs.
# Not verified: drop path; the authors' config is that of DaViT-Tiny.
#   vertebra train ade20k/davit/upernet_davit_small_160k
_base_ = ["upernet_davit_tiny_160k.py"]
model = dict(backbone=dict(model_name="davit_small_fused"))
