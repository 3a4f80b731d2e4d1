# SHViT-S2 on ImageNet-1K at 224: 75.2 % top-1 as published (arXiv 2401.16456, README), 11.5 M parameters.
# Total batch 2048: 8 processes x 256. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/shvit/shvit_s2_fused --launcher pytorch
# See shvit_s1_fused for what is not given or left out.
_base_ = ["shvit_s1_fused.py"]
model = dict(model_name="shvit_s2_fused")
optim_wrapper = dict(optimizer=dict(weight_decay=0.032))
