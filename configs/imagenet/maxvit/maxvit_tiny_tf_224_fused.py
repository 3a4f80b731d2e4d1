# MaxViT-T on ImageNet-1K at 224: 83.62 % top-1 as published (arXiv 2204.01697, README), 30.9 M parameters.
# Total batch 4096: 8 processes x 128 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/maxvit/maxvit_tiny_tf_224_fused --launcher pytorch --amp bf16
# The first rate of the warm-up is not given: a small one is taken, for 0 could not be multiplied. The
# interpolation of training images is not given: bicubic is taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_300e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="maxvit_tiny_tf_224_fused", drop_path_rate=0.2, mixup=dict(cutmix_alpha=0.0), erasing=None)
train_dataloader = dict(dataset=dict(transform=dict(auto_augment="rand-m15-mmax15-n2", interpolation="bicubic")))
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.875)))  # the authors'; timm's cfg has 0.95
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=3e-3), clip_grad=dict(max_norm=1.0), accumulative_counts=4)
auto_scale_lr = dict(base_batch_size=4096)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, end=32, convert_to_iter_based=True),  # 10,000 steps of 4096 images
    dict(type="CosineAnnealingLR", begin=32, eta_min=1e-5, convert_to_iter_based=True),
]
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1e-4, update_buffers=True)]
