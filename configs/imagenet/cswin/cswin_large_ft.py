# CSWin-L from ImageNet-22K at 224: 86.5 % top-1 as published (arXiv 2107.00652, README), 173.3 M parameters.
# Total batch 512: 8 processes x 64. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/cswin/cswin_large_ft --launcher pytorch --amp fp16
# RandAugment and erasing are not given: those of the training on ImageNet-1K are taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_finetune_30e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(
    model_name="cswin_large",
    weights="cswin_large.in22k",
    drop_path_rate=0.2,
    grad_checkpointing=True,
    mixup=dict(mixup_alpha=0.01, cutmix_alpha=0.3),
)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")), batch_size=64)
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4),
    paramwise_cfg=dict(custom_keys={"backbone.": dict(lr_mult=0.05), "backbone.head.": dict(lr_mult=1.0)}),
)
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=5e-7, convert_to_iter_based=True)]
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=4e-4, update_buffers=True)]
