# As imagenet_300e, and ten more epochs at the last rate, which timm's scripts call cool-down.
_base_ = ["imagenet_300e.py"]
train_cfg = dict(max_epochs=310)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=-10, eta_min=1e-5, convert_to_iter_based=True),
]
