# DaViT-Base, UPerNet, 160 000 iterations of ADE20K: 49.4 mIoU as published (arXiv 2204.03645), 121 M parameters,
# 1175 GFLOPs.
# Not verified: drop path; the authors' config is that of DaViT-Tiny.
#   vertebra train ade20k/davit/upernet_davit_base_160k
_base_ = ["upernet_davit_tiny_160k.py"]
model = dict(
    backbone=dict(model_name="davit_base_fused"),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
