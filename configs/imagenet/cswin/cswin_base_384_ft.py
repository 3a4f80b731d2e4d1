# CSWin-B fine-tuned at 384: 85.5 % top-1 as published (arXiv 2107.00652, README), 77.4 M parameters.
# Total batch 256: 8 processes x 32. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/cswin/cswin_base_384_ft --launcher pytorch --amp fp16
# RandAugment, erasing and interpolation of training images are not given: those of the training at 224 are taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_finetune_30e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(
    model_name="cswin_base_384",
    weights="cswin_base.in1k",
    drop_path_rate=0.7,
    mixup=dict(mixup_alpha=0.1, cutmix_alpha=0.1),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=5e-6))
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = [dict(type="CosineAnnealingLR", end=-10, eta_min=5e-7, convert_to_iter_based=True)]
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=2e-4, update_buffers=True)]
