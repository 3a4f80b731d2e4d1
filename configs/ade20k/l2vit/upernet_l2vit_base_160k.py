# L2ViT-Base, UPerNet, 160 000 iterations of ADE20K (arXiv 2501.16182): the score is in the paper's table, which was not
# read; the authors' recipe, 122.1 M parameters as built here.
#   vertebra train ade20k/l2vit/upernet_l2vit_base_160k
_base_ = ["upernet_l2vit_tiny_160k.py"]
model = dict(
    backbone=dict(model_name="l2vit_base"),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
