# CSWin-B on ImageNet-1K at 224: 84.2 % top-1 as published (arXiv 2107.00652, README), 77.4 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/cswin/cswin_base --launcher pytorch --amp fp16
_base_ = ["cswin_tiny.py"]
model = dict(model_name="cswin_base", drop_path_rate=0.5)
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.1))
auto_scale_lr = dict(base_batch_size=1024)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, end=-10, eta_min=1e-5, convert_to_iter_based=True),
]
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=8e-5, update_buffers=True)]
