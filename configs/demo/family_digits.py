# Any family from scratch on the digits at 64 x 64: what the nine published recipes share, scaled down to minutes on two
# CPU cores. Left out, since passes are few: drop path, mixup, cutmix, erasing, RandAugment. Gradients are clipped also
# for those families that train without it, since warm-up is short. What each family has of its own is in
# docs/learning.md; `vertebra benchmark demos families` says what all of them reach.
#   vertebra make_dataset digits data/digits
#   vertebra train demo/family_digits --backbone transnext_micro --cfg-options model.depths=[1,1,2,1]
_base_ = [
    "../_base_/models/classifier.py",
    "../_base_/datasets/digits.py",
    "../_base_/schedules/adamw_300e.py",
    "../_base_/runtime/default.py",
]
model = dict(num_classes=10, label_smoothing=0.1)
train_dataloader = dict(dataset=dict(transform=dict(scale=(0.8, 1.0), color_jitter=0.2)), batch_size=32)
train_cfg = dict(max_epochs=12, val_interval=3)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=2, eta_min_ratio=1e-2, convert_to_iter_based=True),
]
default_hooks = dict(checkpoint=dict(interval=3, save_best="top1"))
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.02, update_buffers=True)]
