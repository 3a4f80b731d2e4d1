# L2ViT-B from ImageNet-22K at 224: 86.0 % top-1 as published (arXiv 2501.16182, README), 88.6 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/l2vit/l2vit_base_ft --launcher pytorch
# The decay of the averaged weights, augmentation, mixing and erasing are not given: those of the training on
# ImageNet-1K are taken.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_finetune_30e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="l2vit_base.in22k_ft_in1k", weights="l2vit_base.in22k", drop_path_rate=0.2)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")), batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=4e-5))
auto_scale_lr = dict(base_batch_size=1024)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, eta_min=4e-7, convert_to_iter_based=True),
]
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=1e-4, update_buffers=True)]
