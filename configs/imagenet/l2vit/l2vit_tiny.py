# L2ViT-T on ImageNet-1K at 224: 83.1 % top-1 as published (arXiv 2501.16182, README), 28.6 M parameters.
# Total batch 4096: 8 processes x 128 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/l2vit/l2vit_tiny --launcher pytorch
# Its drop path is not verified: one for its size, below the authors' 0.3 for L2ViT-B, is taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_300e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="l2vit_tiny", drop_path_rate=0.1)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")))
optim_wrapper = dict(optimizer=dict(lr=4e-3), accumulative_counts=4)
auto_scale_lr = dict(base_batch_size=4096)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, end=20, convert_to_iter_based=True),  # 0 could not be multiplied
    dict(type="CosineAnnealingLR", begin=20, eta_min=1e-6, convert_to_iter_based=True),
]
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1e-4, update_buffers=True)]
