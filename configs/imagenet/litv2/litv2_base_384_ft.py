# LITv2-B fine-tuned at 384: 84.7 % top-1 as published (arXiv 2205.13213, README), 86.5 M parameters.
# Total batch 1024: 8 processes x 32 x 4 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/litv2/litv2_base_384_ft --launcher pytorch
_base_ = ["litv2_small.py"]
model = dict(model_name="litv2_base_384", weights="litv2_base.in1k", drop_path_rate=0.5)
train_cfg = dict(max_epochs=30)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8), accumulative_counts=4)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=5, eta_min=4e-7, convert_to_iter_based=True),
]
