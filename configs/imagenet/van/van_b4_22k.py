# VAN-B4 on ImageNet-22K at 224: no top-1 is published (arXiv 2202.09741), 71.0 M parameters.
# Total batch 8192: 8 processes x 64 x 16 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b4_22k --launcher pytorch
# The authors took 64 GPUs x 64 x 2. Decay, first and last rates and augmentation are those of their ImageNet-1K script.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet22k.py",
    "../../_base_/schedules/imagenet22k_90e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="van_b4.in22k", num_classes=21841, drop_path_rate=0.1)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")), batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=4e-3), accumulative_counts=16)
auto_scale_lr = dict(base_batch_size=8192)
param_scheduler = [
    dict(type="LinearLR", start_factor=2.5e-4, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, eta_min=1e-6, convert_to_iter_based=True),
]
