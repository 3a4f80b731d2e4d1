# CSWin-T on ImageNet-1K at 224: 82.8 % top-1 as published (arXiv 2107.00652, README), 22.3 M parameters.
# Total batch 2048: 8 processes x 256. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/cswin/cswin_tiny --launcher pytorch --amp fp16
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_310e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="cswin_tiny", drop_path_rate=0.2)
train_dataloader = dict(batch_size=256)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=2048)
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-4, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=-10, eta_min=1e-5, convert_to_iter_based=True),
]
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1.6e-4, update_buffers=True)]
