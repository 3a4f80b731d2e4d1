# TransNeXt-Tiny, Semantic FPN, 80 000 iterations of ADE20K: no score published; the usual recipe of this head, with
# drop path and decay of the authors' UPerNet (arXiv 2311.17132), 32.0 M parameters as built here.
#   vertebra train ade20k/transnext/semantic-fpn_transnext_tiny_80k
_base_ = [
    "../../_base_/models/semantic-fpn.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/semantic-fpn_80k.py",
    "../../_base_/runtime/segmentation.py",
]
model = dict(
    backbone=dict(model_name="transnext_tiny", drop_path_rate=0.4, position_bias="interpolation", bias_size=512),
    neck=dict(in_channels=[72, 144, 288, 576]),
)
exempt = ("query_embedding", "relative_pos_bias_local", "cpb", "temperature", "norm")
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={key: dict(decay_mult=0.0) for key in exempt}))
del exempt
