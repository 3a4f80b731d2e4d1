# VAN-B0 on ImageNet-1K at 224: 75.4 % top-1 as published (arXiv 2202.09741, Table 7), 4.1 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b0 --launcher pytorch
# Averaged weights (EMA) are off, as in the authors' script; the paper says that they were used.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_310e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(model_name="van_b0", drop_path_rate=0.1)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, end=-10, eta_min=1e-6, convert_to_iter_based=True),
]
