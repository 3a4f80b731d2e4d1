# VAN-B0 on ImageNet-1K at 224: 75.4 % top-1 as published (arXiv 2202.09741, Table 7), 4.1 M parameters. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b0 --launcher pytorch
_base_ = [
    "../../_base_/models/classifier.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/adamw_300e.py",
    "../../_base_/runtime/default.py",
]
model = dict(
    model_name="van_b0",
    drop_path_rate=0.1,
    label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0, switch_prob=0.5),
    erasing=dict(probability=0.25, mode="pixel"),
)
# the authors' script adds ten epochs at the last rate
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, eta_min=1e-6, convert_to_iter_based=True),
]
