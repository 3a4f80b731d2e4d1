# L2ViT-Tiny, UPerNet, 160 000 iterations of ADE20K (arXiv 2501.16182): the score is in the paper's table, which was not
# read; the authors' recipe, 60.3 M parameters as built here.
#   vertebra train ade20k/l2vit/upernet_l2vit_tiny_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="l2vit_tiny", drop_path_rate=0.3, out_norms=dict(type="LN", eps=1e-5)),
    decode_head=dict(in_channels=[96, 192, 384, 768], norm_cfg=dict(type="BN")),
    auxiliary_head=dict(in_channels=384, norm_cfg=dict(type="BN")),
)
