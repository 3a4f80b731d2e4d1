# LITv2-S on ImageNet-1K at 224: 82.0 % top-1 as published (arXiv 2205.13213, README), 27.8 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/litv2/litv2_small --launcher pytorch
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_300e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="litv2_small", drop_path_rate=0.2)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")))
optim_wrapper = dict(
    clip_grad=dict(max_norm=5.0), paramwise_cfg=dict(custom_keys={"downsample.offset.weight": dict(lr_mult=0.01)})
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=20, eta_min=1e-5, convert_to_iter_based=True),
]
