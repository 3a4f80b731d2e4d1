# SHViT-S4, UPerNet, 160 000 iterations of ADE20K: no score published (arXiv 2401.16456); Swin's recipe for this head,
# norms at rest as in the authors' detectors, 41.3 M parameters as built here.
#   vertebra train ade20k/shvit/upernet_shvit_s4_160k
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/upernet_160k.py",
    "../../_base_/runtime/segmentation.py",
]
# maps at strides 16, 32 and 64: the auxiliary head stands, as ever, at stride 16
model = dict(
    backbone=dict(model_name="shvit_s4_fused", norm_eval=True, out_indices=(0, 1, 2)),
    decode_head=dict(in_channels=[224, 336, 448], in_index=[0, 1, 2]),
    auxiliary_head=dict(in_channels=224, in_index=0),
)
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))
