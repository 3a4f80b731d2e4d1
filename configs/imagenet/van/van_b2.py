# VAN-B2 on ImageNet-1K at 224: 82.8 % top-1 as published (arXiv 2202.09741, Table 7), 26.6 M parameters.
# Total batch 1024: 8 processes x 128. On 8 GPUs:
#   torchrun --nproc-per-node 8 tools/train.py imagenet/van/van_b2 --launcher pytorch
_base_ = ["van_b0.py"]
model = dict(model_name="van_b2")
