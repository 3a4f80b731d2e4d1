# VAN-B4 from ImageNet-22K at 224: 85.7 % top-1 as published (arXiv 2202.09741, Table 8), 60.3 M parameters.
# Total batch 512: 8 processes x 32 x 2 accumulated. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b4_ft --launcher pytorch
# The authors took 16 GPUs x 32. Last rate, RandAugment and erasing are those of their ImageNet-1K script.
_base_ = [
    "../../_base_/models/classifier_regularised.py",
    "../../_base_/datasets/imagenet.py",
    "../../_base_/schedules/imagenet_finetune_30e.py",
    "../../_base_/runtime/imagenet.py",
]
model = dict(
    model_name="van_b4.in22k_ft_in1k", weights="van_b4.in22k", head_init_scale=0.001, drop_path_rate=0.2, mixup=None
)
train_dataloader = dict(dataset=dict(transform=dict(interpolation="bicubic")), batch_size=32)
optim_wrapper = dict(accumulative_counts=2)
